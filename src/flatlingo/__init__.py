"""Measure and regularise the trace of the Fisher information of multilingual classifiers.

The public names, each imported when it is first used: `import flatlingo` itself loads neither torch nor transformers.
One whose packages come with an extra (`pip install "flatlingo[study]"`) says so if they are not there.
"""

from importlib import import_module

_HOME = {
    "FlatlingoError": "errors",
    "fisher_trace": "fisher",
    "FisherTrace": "fisher",
    "empirical_fisher": "fisher",
    "scale_aware": "fisher",
    "distance": "fisher",
    "sam_sharpness": "fisher",
    "Regularizer": "regularizers",
    "Consistency": "regularizers",
    "SubwordConsistency": "regularizers",
    "BothViews": "regularizers",
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
    "TraceTarget": "regularizers",
    "GradientNormPenalty": "regularizers",
    "L2": "regularizers",
    "L2SP": "regularizers",
    "Mixout": "regularizers",
    "SAM": "regularizers",
    "RegularizedTrainer": "trainer",
    "finetune": "training",
    "adapt": "training",
    "TraceCallback": "tracecallbacks",
    "accuracy": "evaluation",
    "margins": "evaluation",
    "memorisation": "evaluation",
    "batches": "encoding",
    "WordPieceSampler": "segmentation",
    "UnigramSampler": "segmentation",
    "load_task": "tasks",
    "load_model": "models",
    "load_classifier": "models",
    "load_tokenizer": "models",
    "sweep": "study.sweep",
    "rank_correlation": "report.correlations",
    "competent_runs": "report.competence",
    "figure1": "report.figures",
    "figure2": "report.figures",
    "save_figure": "report.saving",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        from flatlingo.extras import missing

        if explained := missing(error):
            raise explained from error
        raise


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
