"""Terms added to the training loss of a sequence classifier, one file per method.

A term goes into `RegularizedTrainer(…, regularizers=[…])` or `finetune(…, regularizers=[…])`, alone or with others.

=====================  ============================================================  ================================
method                 one line                                                      paper
=====================  ============================================================  ================================
both views             `BothViews(tokenizer)`                                        Kudo 2018
consistency            `SubwordConsistency(tokenizer, weight=0.6)`                   Wang, Ruder & Neubig 2021
consistency, faithful  `SubwordConsistency(tokenizer, weight=0.6, mode="faithful")`  Wang, Ruder & Neubig 2021
R3F                    `R3F(weight=1.0)`                                             Aghajanyan et al. 2021
R4F                    `R4F(weight=1.0)`                                             Aghajanyan et al. 2021
R-Drop                 `RDrop(weight=1.0)`                                           Liang et al. 2021
SMART                  `SMART(weight=1.0)`                                           Jiang et al. 2020
VAT                    `VAT(weight=1.0)`                                             Miyato, Dai & Goodfellow 2017
LNSR                   `LNSR(weight=1.0, layer=1)`                                   Hua et al. 2021
xTune                  `XTune(CodeSwitching(tokenizer, lexicon), 5, "code")`         Zheng et al. 2021
weight noise           `WeightNoise(weight=1.0, sigma=1e-3)`                         Stickland & Murray 2021, eq. (1)
Fisher penalty         `FisherPenalty(weight=0.0003)`                                Jastrzebski et al. 2021
trace penalty          `TracePenalty(weight=0.0003)`
trace target           `TraceTarget(target=1000)`
gradient norm          `GradientNormPenalty(weight=0.01)`                            Jastrzebski et al. 2021
SAM                    `finetune(…, sam=SAM(rho=0.05))`                              Foret et al. 2021
ASAM                   `finetune(…, sam=SAM(rho=0.5, adaptive=True))`                Kwon et al. 2021
L2 to zero             `L2(weight=0.01)`
L2 to the start        `L2SP(weight=0.01)`                                           Li, Grandvalet & Davoine 2018
weight decay           `finetune(…, weight_decay=0.01)`                              Loshchilov & Hutter 2019
weight averaging       `finetune(…, average=0.25)`                                   Izmailov et al. 2018
mixout                 `Mixout(p=0.1)`                                               Lee, Cho & Kang 2020
dropout                `load_model(…, dropout=0.3)`                                  Srivastava et al. 2014
label smoothing        `finetune(…, label_smoothing=0.1)`                            Szegedy et al. 2016
early stopping         `finetune(…, patience=3, eval_rows=rows)`
=====================  ============================================================  ================================

"consistency" is MVR, SMART its smoothness term, xTune its example consistency; weight decay is decoupled; in the
studies early stopping keeps a tenth of the training rows aside to decide on, so that it trains on fewer. Any other
consistency is `Consistency(perturbation, divergence, weight)` with a perturbation (`SampledSegmentation`,
`Translation`, `CodeSwitching`, `Dropout`, `EmbeddingNoise`, `AdversarialEmbedding`, `HiddenNoise`, `ParameterNoise`)
and a divergence, one of the functions of `divergences`.

What a step of each costs: benchmarks/results/steps.md. One of one's own, which pulls the predictions towards the
uniform distribution:

>>> import flatlingo as fl
>>> from torch.nn.functional import log_softmax
>>> class ConfidencePenalty(fl.Regularizer):
...     name = "confidence"
...     def __call__(self, model, batch, outputs):
...         surprise = -log_softmax(outputs.logits, -1).mean()
...         return self.weight * surprise, {"surprise": surprise}
>>> model, tokenizer = fl.load_model("mini-mbert", num_labels=3, seed=1), fl.load_tokenizer("mini-mbert")
>>> rows = fl.load_task("mini-nli", train_size=16, validation_size=6).rows("en", "train")
>>> settings = {"seed": 1, "epochs": 1, "batch_size": 8, "learning_rate": 1e-4, "max_length": 64}
>>> log = fl.finetune(model, tokenizer, rows, regularizers=[ConfidencePenalty(0.1)], **settings)
>>> [key for key in log[0] if "confidence" in key]
['loss/confidence', 'confidence/surprise']
"""

from flatlingo.regularizers.base import Regularizer
from flatlingo.regularizers.consistency import (
    LNSR,
    R3F,
    R4F,
    SMART,
    VAT,
    BothViews,
    Consistency,
    RDrop,
    SubwordConsistency,
    WeightNoise,
    XTune,
)
from flatlingo.regularizers.fisher_penalty import FisherPenalty
from flatlingo.regularizers.gradient_norm import GradientNormPenalty
from flatlingo.regularizers.l2 import L2, L2SP
from flatlingo.regularizers.mixout import Mixout
from flatlingo.regularizers.perturbations import (
    AdversarialEmbedding,
    CodeSwitching,
    Dropout,
    EmbeddingNoise,
    HiddenNoise,
    ParameterNoise,
    Perturbation,
    SampledSegmentation,
    Translation,
)
from flatlingo.regularizers.sam import SAM
from flatlingo.regularizers.trace_penalty import TracePenalty
from flatlingo.regularizers.trace_target import TraceTarget

__all__ = [
    "L2",
    "L2SP",
    "LNSR",
    "R3F",
    "R4F",
    "SAM",
    "SMART",
    "VAT",
    "AdversarialEmbedding",
    "BothViews",
    "CodeSwitching",
    "Consistency",
    "Dropout",
    "EmbeddingNoise",
    "FisherPenalty",
    "GradientNormPenalty",
    "HiddenNoise",
    "Mixout",
    "ParameterNoise",
    "Perturbation",
    "RDrop",
    "Regularizer",
    "SampledSegmentation",
    "SubwordConsistency",
    "TracePenalty",
    "TraceTarget",
    "Translation",
    "WeightNoise",
    "XTune",
]
