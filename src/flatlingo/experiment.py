"""What a study trains: presets, conditions and run configurations, and the ids that identify finished runs."""

import hashlib
import json
from pathlib import Path
from typing import Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flatlingo import hub, tasks
from flatlingo.errors import FlatlingoError, unknown
from flatlingo.paths import PRESETS

Family = Literal[
    "none",
    "consistency",
    "fisher_penalty",
    "l2",
    "l2_sp",
    "dropout",
    "r3f",
    "r4f",
    "r_drop",
    "smart",
    "vat",
    "lnsr",
    "xtune",
    "weight_noise",
    "trace_penalty",
    "gradient_norm",
    "mixout",
    "sam",
    "asam",
    "weight_decay",
    "label_smoothing",
    "early_stopping",
]
S = TypeVar("S", bound=BaseModel)
FIGURES = ("figure1", "figure2")
PLANS = (*FIGURES, "methods", "beyond")  # those that are no figure of the paper may be left out of a preset
# Where it is not the family's name.
LEGEND = {"consistency": "kl", "fisher_penalty": "fpen", "trace_penalty": "trpen", "l2_sp": "l2sp"}


class _Settings(BaseModel):
    """Immutable settings that refuse unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Condition(_Settings):
    """One regulariser setting: one marker of a figure.

    The weight is what a method has in its place: the probability of `dropout` and `mixout`, ρ of `sam` and `asam`, the
    decay of `weight_decay`, the share of `label_smoothing`, the patience in epochs of `early_stopping`.

    >>> Condition(family="consistency", weight=0.6).label, Condition(family="sam", weight=0.05).label
    ('kl=0.6', 'sam=0.05')
    """

    family: Family
    weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @property
    def label(self) -> str:
        """The name in legends and run ids, as in the paper: `kl=k`, `fpen=k`."""
        return "none" if self.family == "none" else f"{LEGEND.get(self.family, self.family)}={self.weight:g}"


class Training(_Settings):
    """Fine-tuning on English: AdamW without weight decay, linear decay to 0, clipping at 1 (Wang et al. 2021)."""

    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    max_length: int = Field(ge=8)


class Segmentation(_Settings):
    """How the second view of the consistency loss is segmented."""

    p: float = Field(default=0.2, ge=0, lt=1)
    mode: Literal["faithful", "clean"] = "faithful"


class Adaptation(_Settings):
    """Second-stage fine-tuning on half of a target language's validation set.

    With `regularized`, the regularisers of the condition stay on; left out of run ids where it is off.
    """

    languages: tuple[str, ...]
    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    regularized: bool = Field(default=False, exclude_if=lambda on: not on)


class Study(_Settings):
    """The data, the training and the measurements behind one figure; everything but the conditions and the seed.

    `trace_penalty_every`: the exact trace penalty is computed in every k-th step, times k, so that it costs what the
    sampled one costs; left out of run ids where it is 1.
    """

    task: str
    train_size: int | None = Field(default=None, gt=0)
    validation_size: int | None = Field(default=None, gt=0)
    label_noise: float = Field(default=0.0, ge=0, le=1)
    languages: tuple[str, ...] = ("en", "de", "es", "zh")
    training: Training
    segmentation: Segmentation = Segmentation()
    adaptation: Adaptation | None = None
    trace_examples: int | None = Field(default=None, gt=1)
    trace_penalty_every: int = Field(default=1, gt=0, exclude_if=lambda every: every == 1)


class RunConfig(_Settings):
    """Everything that decides the result of one run. Equal configurations have equal ids, whatever the machine.

    `data` and `model_sha256` are fingerprints of the rows and of the pre-trained weights, so that results computed on
    other rows or from other weights are never mistaken for these.
    """

    figure: str
    condition: Condition
    seed: int = Field(ge=0)
    model: str
    model_sha256: str | None
    data: str
    study: Study

    @property
    def run_id(self) -> str:
        """`figure1-kl=0.6-s1-` and ten hexadecimal digits of the SHA-256 of the configuration as canonical JSON."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return (
            f"{self.figure}-{self.condition.label}-s{self.seed}-{hashlib.sha256(canonical.encode()).hexdigest()[:10]}"
        )


class FigurePlan(_Settings):
    """A study and the conditions it is run under."""

    study: Study
    conditions: dict[Family, tuple[float, ...]]

    def expand(self) -> list[Condition]:
        """All conditions, the baseline first."""
        return [
            Condition(family=family, weight=weight) for family, weights in self.conditions.items() for weight in weights
        ]


class Preset(_Settings):
    """A named size of the whole study: `smoke`, `mini`, `paper`, `xlmr`, or a YAML file of the same shape."""

    name: str = Field(pattern=r"^\w[\w.-]*$")  # a folder of data/recorded and figures, and nothing outside them
    model: str
    seeds: int = Field(default=1, gt=0)
    figure1: FigurePlan
    figure2: FigurePlan
    methods: FigurePlan | None = None
    beyond: FigurePlan | None = None

    @property
    def plans(self) -> list[str]:
        """The names of its plans: figure1, figure2 and, where it has them, methods and beyond."""
        return [name for name in PLANS if getattr(self, name) is not None]


def known_presets() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """Read a preset by name, or from a path that ends in `.yaml`.

    Raises:
        FlatlingoError: if there is no such preset, or it does not have the shape of one; the message names the field.
    """
    path = Path(name) if name.endswith(".yaml") else PRESETS / f"{name}.yaml"
    if not path.is_file() or not (name in known_presets() or name.endswith(".yaml")):
        raise FlatlingoError(unknown("preset", name, known_presets()) + " (or give a path that ends in .yaml)")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FlatlingoError(f"preset {path.name} is not a YAML file: {error}") from error
    return validated(Preset, settings, f"preset {path.name}")


def validated(kind: type[S], values: object, what: str) -> S:
    """The settings, or a `FlatlingoError` that names every field that is wrong and why."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise FlatlingoError(f"{what}: {wrong}") from error


def plan(
    figure: str,
    preset: Preset,
    *,
    seeds: int | list[int] | None = None,
    data: Path | None = None,
    model: str | None = None,
) -> list[RunConfig]:
    """The runs of one plan: every condition of the preset with every seed, conditions in the outer loop.

    Args:
        figure: "figure1", "figure2", "methods" (every named method once) or "beyond" (regularised second stages, and
            the exact trace penalty).
        preset: what to run.
        seeds: how many (1, 2, …, n), or which; the preset's number by default.
        data: a folder of real rows in XTREME layout. The mini world's task is replaced by the real one of its kind,
            and label noise, which only the mini world knows, by none.
        model: another pre-trained model than the preset's: `mini-mbert`, a Hub id or a folder.

    Raises:
        FlatlingoError: for an unknown figure, one that the preset has no plan of, a seed that is not a number ≥ 0, or
            what `tasks` and `hub` refuse.
    """
    if figure not in PLANS:
        raise FlatlingoError(unknown("figure", figure, PLANS))
    if figure not in preset.plans:
        raise FlatlingoError(f"preset {preset.name} has no plan {figure!r}; it has {', '.join(preset.plans)}")
    chosen = list(range(1, (seeds or preset.seeds) + 1)) if not isinstance(seeds, list) else seeds
    if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen):
        raise FlatlingoError(f"seeds must be different numbers, 0 or more; got {seeds!r}")
    figure_plan: FigurePlan = getattr(preset, figure)
    study = figure_plan.study
    if data is not None and study.task in tasks.REAL_COUNTERPART:
        study = study.model_copy(
            update={"task": tasks.REAL_COUNTERPART[study.task], "label_noise": 0.0, "validation_size": None}
        )
    source = model or preset.model
    common = {
        "figure": figure,
        "model": source,
        "model_sha256": hub.fingerprint(source),
        "data": tasks.fingerprint(study.task, data, study.languages),
        "study": study,
    }
    return [
        RunConfig(condition=condition, seed=seed, **common) for condition in figure_plan.expand() for seed in chosen
    ]
