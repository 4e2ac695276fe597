"""Terms added to the training loss of a sequence classifier, one file a method."""

from flatlingo.regularizers.base import Regularizer
from flatlingo.regularizers.consistency import SubwordConsistency
from flatlingo.regularizers.fisher_penalty import FisherPenalty
from flatlingo.regularizers.l2 import L2, L2SP

__all__ = ["L2", "L2SP", "FisherPenalty", "Regularizer", "SubwordConsistency"]
