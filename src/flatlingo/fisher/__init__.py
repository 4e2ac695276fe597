"""Fisher information of classifiers: the exact trace, dense matrices of tiny models, and the theory behind it."""

from flatlingo.fisher.sharpness import sam_sharpness
from flatlingo.fisher.trace import FisherTrace, empirical_fisher, fisher_trace, softmax_factor

__all__ = ["FisherTrace", "empirical_fisher", "fisher_trace", "sam_sharpness", "softmax_factor"]
