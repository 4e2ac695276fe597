"""Measure and regularise the trace of the Fisher information of multilingual classifiers.

The public names, each imported when it is first used: `import flatlingo` itself loads neither torch nor transformers.
"""

from importlib import import_module

_HOME = {
    "FlatlingoError": "errors",
    "fisher_trace": "fisher",
    "FisherTrace": "fisher",
    "empirical_fisher": "fisher",
    "Regularizer": "regularizers",
    "Consistency": "regularizers",
    "SubwordConsistency": "regularizers",
    "R3F": "regularizers",
    "R4F": "regularizers",
    "RDrop": "regularizers",
    "SMART": "regularizers",
    "VAT": "regularizers",
    "LNSR": "regularizers",
    "XTune": "regularizers",
    "WeightNoise": "regularizers",
    "FisherPenalty": "regularizers",
    "TracePenalty": "regularizers",
    "GradientNormPenalty": "regularizers",
    "L2": "regularizers",
    "L2SP": "regularizers",
    "Mixout": "regularizers",
    "SAM": "regularizers",
    "RegularizedTrainer": "training",
    "finetune": "training",
    "adapt": "training",
    "accuracy": "evaluation",
    "memorisation": "evaluation",
    "batches": "encoding",
    "WordPieceSampler": "segmentation",
    "UnigramSampler": "segmentation",
    "load_task": "tasks",
    "load_model": "hub",
    "load_classifier": "hub",
    "load_tokenizer": "hub",
    "sweep": "sweeps",
    "correlation": "analysis",
    "figure1": "figures",
    "figure2": "figures",
    "save_figure": "figures",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
