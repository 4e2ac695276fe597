"""Fisher information of classifiers: the exact trace, dense matrices of tiny models, and the theory behind it."""

from flatlingo.fisher.directions import softmax_factor
from flatlingo.fisher.result import FisherTrace
from flatlingo.fisher.sharpness import sam_sharpness
from flatlingo.fisher.trace import empirical_fisher, fisher_trace
from flatlingo.fisher.weights import distance, scale_aware

__all__ = [
    "FisherTrace",
    "distance",
    "empirical_fisher",
    "fisher_trace",
    "sam_sharpness",
    "scale_aware",
    "softmax_factor",
]
