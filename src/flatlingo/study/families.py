"""Families of methods, one row each, from which figures, catalogue, help, presets and benchmark take what they say.

A family is a method at any weight; a condition is a family at one weight. To add one that is a term of the loss: its
class in `flatlingo.regularizers` (whose default weight is the method's own) and a row here. Plain data, no torch.
"""

from dataclasses import dataclass
from typing import Literal

from flatlingo.errors import FlatlingoError, unknown

LEVELS = (3 / 4, 1 / 2, 1 / 4, 1 / 10)  # shares of the unregularised Tr(F) at which families are compared
KINDS = {  # in figures: the words and the colour of each kind of method
    "none": ("no regulariser", "#000000"),
    "consistency": ("consistency of two passes", "#0072B2"),
    "gradient": ("penalty on gradients, or sharpness", "#D55E00"),
    "weights": ("on the weights", "#009E73"),
    "other": ("dropout, labels, stopping", "#CC79A7"),
}


@dataclass(frozen=True)
class Look:
    """How a family is drawn where families are told apart: a matplotlib marker, its colour, filled or not, its size."""

    marker: str
    colour: str
    filled: bool = True
    size: float = 5


@dataclass(frozen=True)
class Family:
    """A method.

    Attributes:
        name: as presets, tables and the command line have it.
        title: as prose and figures name it.
        kind: one of `KINDS`.
        changes: what it changes: a "term" of the loss (`how` names a class of `flatlingo.regularizers`), a "setting" of
            `training.finetune` or of "model", `models.load_model` (`how` names the argument), or "nothing".
        how: see `changes`.
        weight: what its weight is, "λ", "probability", "target", …; "" for a family that has none.
        code: one line that asks for it.
        paper: whose it is; "" for what has no single source.
        legend: before the weight in legends and run ids; the name by default.
        look: how it is drawn; by default a dot in the colour of its kind.
        passes: what a training step takes at least, in forward passes: of plain training 3, for a backward pass is 2.
    """

    name: str
    title: str
    kind: str
    changes: Literal["nothing", "term", "setting", "model"]
    how: str
    weight: str
    code: str
    paper: str = ""
    legend: str = ""
    look: Look | None = None
    passes: int = 3

    @property
    def drawn(self) -> Look:
        """How the family is drawn: its look or, without one, a dot in the colour of its kind."""
        return self.look or Look(".", KINDS[self.kind][1], size=7)

    def impossible(self, weight: float) -> str | None:
        """Why the family cannot have a weight; None if it can.

        >>> family("dropout").impossible(1.5), family("dropout").impossible(0.1)
        ('a probability is below 1', None)
        """
        if weight and not self.weight:
            return "this family has no weight"
        if self.weight == "probability" and weight >= 1:
            return "a probability is below 1"
        if self.weight == "share" and weight > 1:
            return "a share is at most 1"
        if self.weight == "epochs" and weight != int(weight):
            return "epochs are a whole number"
        return None

    def label(self, weight: float) -> str:
        """Its name with a weight in legends and run ids, as in the paper: `kl=0.6`."""
        return f"{self.legend or self.name}={weight:g}" if self.weight else self.legend or self.name


ROWS = (
    Family("none", "no regulariser", "none", "nothing", "", "", "finetune(…)", look=Look("*", "#000000", size=9)),
    Family(
        "both_views",
        "both views",
        "consistency",
        "term",
        "BothViews",
        "",
        "BothViews(tokenizer)",
        "Kudo 2018",
        legend="both",
        look=Look("+", "#56B4E9", size=7),
        passes=6,
    ),
    Family(
        "consistency",
        "consistency",
        "consistency",
        "term",
        "SubwordConsistency",
        "λ",
        "SubwordConsistency(tokenizer, weight=0.6)",
        "Wang, Ruder & Neubig 2021",
        legend="kl",
        look=Look("x", "#0072B2"),
        passes=6,
    ),
    Family(
        "consistency_faithful",
        "consistency, faithful",
        "consistency",
        "term",
        "SubwordConsistency",
        "λ",
        'SubwordConsistency(tokenizer, weight=0.6, mode="faithful")',
        "Wang, Ruder & Neubig 2021",
        legend="klf",
        passes=6,
    ),
    Family("r3f", "R3F", "consistency", "term", "R3F", "λ", "R3F(weight=1.0)", "Aghajanyan et al. 2021", passes=6),
    Family("r4f", "R4F", "consistency", "term", "R4F", "λ", "R4F(weight=1.0)", "Aghajanyan et al. 2021", passes=6),
    Family("r_drop", "R-Drop", "consistency", "term", "RDrop", "λ", "RDrop(weight=1.0)", "Liang et al. 2021", passes=6),
    Family("smart", "SMART", "consistency", "term", "SMART", "λ", "SMART(weight=1.0)", "Jiang et al. 2020", passes=8),
    Family(
        "vat", "VAT", "consistency", "term", "VAT", "λ", "VAT(weight=1.0)", "Miyato, Dai & Goodfellow 2017", passes=8
    ),
    Family(
        "lnsr", "LNSR", "consistency", "term", "LNSR", "λ", "LNSR(weight=1.0, layer=1)", "Hua et al. 2021", passes=6
    ),
    Family(
        "xtune",
        "xTune",
        "consistency",
        "term",
        "XTune",
        "λ",
        'XTune(CodeSwitching(tokenizer, lexicon), 5, "code")',
        "Zheng et al. 2021",
        passes=6,
    ),
    Family(
        "weight_noise",
        "weight noise",
        "consistency",
        "term",
        "WeightNoise",
        "λ",
        "WeightNoise(weight=1.0, sigma=1e-3)",
        "Stickland & Murray 2021, eq. (1)",
        passes=6,
    ),
    Family(
        "fisher_penalty",
        "Fisher penalty",
        "gradient",
        "term",
        "FisherPenalty",
        "λ",
        "FisherPenalty(weight=0.0003)",
        "Jastrzebski et al. 2021",
        legend="fpen",
        look=Look("o", "#D55E00"),
        passes=9,
    ),
    Family(
        "trace_penalty",
        "trace penalty",
        "gradient",
        "term",
        "TracePenalty",
        "λ",
        "TracePenalty(weight=0.0003)",
        legend="trpen",
        look=Look("D", "#E69F00"),
        passes=9,
    ),
    Family(
        "trace_target",
        "trace target",
        "gradient",
        "term",
        "TraceTarget",
        "target",
        "TraceTarget(target=1000)",
        legend="target",
        passes=9,
    ),
    Family(
        "gradient_norm",
        "gradient norm",
        "gradient",
        "term",
        "GradientNormPenalty",
        "λ",
        "GradientNormPenalty(weight=0.01)",
        "Jastrzebski et al. 2021",
        passes=9,
    ),
    Family(
        "sam", "SAM", "gradient", "setting", "sam", "ρ", "finetune(…, sam=SAM(rho=0.05))", "Foret et al. 2021", passes=6
    ),
    Family(
        "asam",
        "ASAM",
        "gradient",
        "setting",
        "sam",
        "ρ",
        "finetune(…, sam=SAM(rho=0.5, adaptive=True))",
        "Kwon et al. 2021",
        passes=6,
    ),
    Family(
        "l2",
        "L2 to zero",
        "weights",
        "term",
        "L2",
        "λ",
        "L2(weight=0.01)",
        look=Look("s", "#009E73"),
    ),
    Family(
        "l2_sp",
        "L2 to the start",
        "weights",
        "term",
        "L2SP",
        "λ",
        "L2SP(weight=0.01)",
        "Li, Grandvalet & Davoine 2018",
        legend="l2sp",
        look=Look("s", "#009E73", filled=False),
    ),
    Family(
        "weight_decay",
        "weight decay",
        "weights",
        "setting",
        "weight_decay",
        "decay",
        "finetune(…, weight_decay=0.01)",
        "Loshchilov & Hutter 2019",
    ),
    Family(
        "weight_averaging",
        "weight averaging",
        "weights",
        "setting",
        "average",
        "share",
        "finetune(…, average=0.25)",
        "Izmailov et al. 2018",
        legend="average",
    ),
    Family("mixout", "mixout", "weights", "term", "Mixout", "probability", "Mixout(p=0.1)", "Lee, Cho & Kang 2020"),
    Family(
        "dropout",
        "dropout",
        "other",
        "model",
        "dropout",
        "probability",
        "load_model(…, dropout=0.3)",
        "Srivastava et al. 2014",
        look=Look("^", "#CC79A7"),
    ),
    Family(
        "label_smoothing",
        "label smoothing",
        "other",
        "setting",
        "label_smoothing",
        "share",
        "finetune(…, label_smoothing=0.1)",
        "Szegedy et al. 2016",
    ),
    Family(
        "early_stopping",
        "early stopping",
        "other",
        "setting",
        "patience",
        "epochs",
        "finetune(…, patience=3, eval_rows=rows)",
    ),
)
FAMILIES = {row.name: row for row in ROWS}


def family(name: str) -> Family:
    """The family of a name.

    >>> family("consistency").label(0.6), family("sam").label(0.05), family("none").label(0)
    ('kl=0.6', 'sam=0.05', 'none')

    Raises:
        FlatlingoError: for an unknown name.
    """
    if name not in FAMILIES:
        raise FlatlingoError(unknown("family", name, FAMILIES))
    return FAMILIES[name]


def title(name: str) -> str:
    """A family as prose names it; one that is not known by its name."""
    return FAMILIES[name].title if name in FAMILIES else name
