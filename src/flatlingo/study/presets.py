"""What a study trains: presets, plans, conditions, and the configuration of a run. Plain data, without torch."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from flatlingo.errors import FlatlingoError, unknown
from flatlingo.files import PRESETS
from flatlingo.randomness import LARGEST_SEED
from flatlingo.study.families import FAMILIES, Family, family
from flatlingo.taskfiles import read_yaml, validated, yaml_file

PERIODIC = ("fisher_penalty", "trace_penalty", "trace_target")  # families that need not be computed in every step
PARTS = {None: 1.0, "head": 0.0, "last_layer": 0.25}  # share of a penalty's passes: those of an encoder of four layers
EXACT = 4.0  # a step with an exact trace, in plain ones: two directions are differentiated, for three classes
PLANS = ("nli", "paraphrase", "methods", "regularized_second_stage", "technique", "intervention")


def _known_family(name: str) -> str:
    if name not in FAMILIES:
        raise ValueError(unknown("family", name, FAMILIES))
    return name


def _known_plan(name: str) -> str:
    if name not in PLANS:
        raise ValueError(unknown("plan", name, PLANS))
    return name


FamilyName = Annotated[str, AfterValidator(_known_family)]
PlanName = Annotated[str, AfterValidator(_known_plan)]


class _Settings(BaseModel):
    """Immutable settings that refuse unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _pairs(value: object) -> object:
    return tuple(value.items()) if isinstance(value, dict) else value


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Condition(_Settings):
    """One regulariser setting: one marker of a figure.

    The weight is what a method has in its place (`families.Family.weight`): λ, a probability, a radius, … The rest is
    for methods compared at equal compute: `also`, further families with their weights; `every`, penalties on the
    gradient in every k-th step only, times k; `parameters`, penalties on the gradient of these only; `length`, epochs
    as a multiple of the setup's.

    >>> Condition(family="consistency", weight=0.6).label, Condition(family="none").label
    ('kl=0.6', 'none')
    >>> Condition(family="fisher_penalty", weight=0.001, also={"weight_averaging": 0.25}, every=2, length=0.5).label
    'fpen=0.001+average=0.25+every=2+length=0.5'
    """

    family: FamilyName
    weight: Weight = 0.0
    also: Annotated[tuple[tuple[FamilyName, Weight], ...], BeforeValidator(_pairs)] = Field(
        default=(), exclude_if=lambda also: not also
    )
    every: int = Field(default=1, ge=1, exclude_if=lambda every: every == 1)
    parameters: Literal["head", "last_layer"] | None = Field(default=None, exclude_if=lambda which: which is None)
    length: float = Field(default=1.0, gt=0, exclude_if=lambda length: length == 1)

    @model_validator(mode="after")
    def _has_the_penalty(self) -> "Condition":
        families = {row.name for row, _ in self.parts}
        if self.parameters and not families & {*PERIODIC} - {"trace_target"}:
            raise ValueError(
                f"parameters={self.parameters} is of Fisher and trace penalty, and {self.family} is neither"
            )
        if self.every > 1 and not families & {*PERIODIC}:
            raise ValueError(f"every={self.every} is of penalties on the gradient, and {self.family} is none")
        return self

    @model_validator(mode="after")
    def _has_possible_weights(self) -> "Condition":
        for row, weight in self.parts:
            if expected := row.impossible(weight):
                raise ValueError(f"{row.name} at {weight:g}: {expected}")
        return self

    @model_validator(mode="after")
    def _sets_nothing_twice(self) -> "Condition":
        rows = [row for row, _ in self.parts if row.changes != "nothing"]
        hows = [(row.changes, row.how) for row in rows]
        for row, how in zip(rows, hows, strict=True):
            if hows.count(how) > 1:
                raise ValueError(f"{row.name} is given twice, or with a family that sets the same ({row.how})")
        return self

    @property
    def parts(self) -> list[tuple[Family, float]]:
        """All its families with their weights."""
        return [(family(name), weight) for name, weight in ((self.family, self.weight), *self.also)]

    @property
    def label(self) -> str:
        """The name in legends and run ids, as in the paper: `kl=k`, `fpen=k`."""
        return "+".join([*(row.label(weight) for row, weight in self.parts), *self._recipe, *self._times])

    @property
    def method(self) -> str:
        """What decides the cost of a step: the families; a penalty's parameters, and how often it is computed."""
        return "+".join([*(row.name for row, _ in self.parts), *self._recipe])

    @property
    def _recipe(self) -> list[str]:
        which = [f"parameters={self.parameters}"] if self.parameters else []
        return which + ([f"every={self.every}"] if self.every > 1 else [])

    @property
    def _times(self) -> list[str]:
        return [f"length={self.length:g}"] if self.length != 1 else []


class Training(_Settings):
    """Fine-tuning: AdamW without weight decay, linear decay to 0, clipping at 1 (Wang et al. 2021).

    `warmup`: share of the steps in which the learning rate rises linearly from 0. `group_by_length`: batches of rows of
    about one length, in random order, so that little is padded; other batches, hence another training.
    """

    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    max_length: int = Field(ge=8)
    warmup: float = Field(default=0.0, ge=0, lt=1, exclude_if=lambda share: share == 0)
    group_by_length: bool = Field(default=False, exclude_if=lambda on: not on)


class Segmentation(_Settings):
    """How the second view of the consistency loss is segmented: `p` for WordPiece, `alpha` for a unigram tokenizer.

    `shared_pass`: both views go through the model in one pass, which saves time on a GPU: the same loss, other draws of
    dropout.
    """

    p: float = Field(default=0.2, ge=0, lt=1)
    alpha: float = Field(default=0.2, gt=0, exclude_if=lambda alpha: alpha == 0.2)
    mode: Literal["faithful", "clean"] = "faithful"
    shared_pass: bool = Field(default=False, exclude_if=lambda shared: not shared)


class SecondStage(_Settings):
    """Further fine-tuning on half of a target language's validation rows, with its own share of redrawn labels.

    `rows`: only so many of them, drawn once for all languages and seeds. `regularized`: the regularisers of the
    condition stay on, but for early stopping; else the copy has the encoder's own dropout. `english_control`: the same
    once more on as many English rows, which separates what more rows give from what the language gives.
    """

    languages: tuple[str, ...] = Field(min_length=1)
    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    label_noise: float = Field(default=0.0, ge=0, le=1)
    rows: int | None = Field(default=None, gt=0, exclude_if=lambda rows: rows is None)
    regularized: bool = False
    english_control: bool = True


class Measurement(_Settings):
    """What is measured of a model, besides its accuracy on every validation row.

    `trace_examples`: English validation rows of Tr(F), all by default; `target_examples`: those of each other language,
    0 for none. `curve`: at which shares of the training steps Tr(F) is measured on the way, on the first
    `curve_examples` rows. `sharpness_radius`: ρ of SAM's sharpness, on the first 300 training rows; None for none.
    `segmentation_examples`: English validation rows whose predictions for two segmentations are compared; 0 for none.
    """

    trace_examples: int | None = Field(default=None, gt=1)
    target_examples: int = Field(default=0, ge=0)
    curve: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = ()
    curve_examples: int = Field(default=100, gt=1)
    sharpness_radius: float | None = Field(default=None, gt=0, exclude_if=lambda radius: radius is None)
    segmentation_examples: int = Field(default=0, ge=0, exclude_if=lambda examples: examples == 0)


class Setup(_Settings):
    """How every run of a plan is trained and measured: all but its condition, its seed and where its files lie.

    `task`: a name, or the path of a task's description. `label_noise`: share of the English training labels redrawn.
    `precision`: of training, on any device; what is measured is float32. `trace_penalty_every`: the exact trace penalty
    is computed in every k-th step, times k. `trace_target_after`: steps of plain training before a trace target acts. A
    setting that is left out at its default can be added without changing the ids of older runs (`exclude_if`).
    """

    task: str
    languages: tuple[str, ...] = ("en", "de", "es", "zh")
    train_size: int | None = Field(default=None, gt=0)
    validation_size: int | None = Field(default=None, gt=0)
    label_noise: float = Field(default=0.0, ge=0, le=1)
    training: Training
    precision: Literal["float32", "bf16"] = "float32"
    segmentation: Segmentation = Segmentation()
    second_stage: SecondStage | None = None
    measurement: Measurement = Measurement()
    trace_penalty_every: int = Field(default=1, gt=0, exclude_if=lambda every: every == 1)
    trace_target_after: int = Field(default=0, ge=0, exclude_if=lambda after: after == 0)


class Provenance(_Settings):
    """Where an encoder or rows came from, and what tells them from others.

    Attributes:
        source: "files", "generated", or the id of a model or data set on the Hub.
        revision: the commit on the Hub.
        sha256: of the files, or of a sample of generated rows.
    """

    source: str
    revision: str | None = None
    sha256: str | None = None


class RunSpec(_Settings):
    """One run as a plan asks for it: what decides its result, but for the files of encoder and rows.

    `encoder` is the encoder's own name: the last part of its Hub id or of its folder.
    """

    plan: PlanName
    condition: Condition
    seed: int = Field(ge=0, le=LARGEST_SEED)
    encoder: str
    setup: Setup

    @property
    def name(self) -> str:
        """Plan, condition and seed: `nli-kl=0.6-s1`, the first part of a run's id."""
        return f"{self.plan}-{self.condition.label}-s{self.seed}"

    @property
    def epochs(self) -> int:
        """Epochs of training on English: the setup's times the condition's length, at least one."""
        return max(1, round(self.setup.training.epochs * self.condition.length))

    def every(self, name: str) -> int:
        """From one step in which a family of the condition is computed to the next."""
        if name not in PERIODIC:
            return 1
        by_setup = self.setup.trace_penalty_every if name == "trace_penalty" else 1
        return by_setup if self.condition.every == 1 else self.condition.every

    @property
    def compute(self) -> float:
        """Compute of training on English, in that of plain fine-tuning: passes of a step times the condition's length.

        Terms add their passes to the plain ones (`Family.passes`, of an exact trace `EXACT`), a penalty in every k-th
        step a k-th of them, of some layers their share (`PARTS`); SAM doubles what is there. The length is that of the
        epochs, which are whole. Measured times of a step differ by up to a tenth, mixout's by more
        (benchmarks/results/steps.md).
        """
        passes, factor = 1.0, 1.0
        for row, _ in self.condition.parts:
            more = (EXACT if row.name in ("trace_penalty", "trace_target") else row.passes / 3) - 1
            if row.how == "sam":
                factor *= 1 + more
            elif row.name in PERIODIC:
                passes += more * PARTS[self.condition.parameters] / self.every(row.name)
            else:
                passes += more
        return passes * factor * self.epochs / self.setup.training.epochs


class RunConfig(RunSpec):
    """Everything that decides the result of one run. Equal configurations have equal ids, whatever the machine."""

    weights: Provenance
    rows: Provenance

    @property
    def run_id(self) -> str:
        """`nli-kl=0.6-s1-` and ten hexadecimal digits of the SHA-256 of the configuration as canonical JSON."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return f"{self.name}-{hashlib.sha256(canonical.encode()).hexdigest()[:10]}"

    @property
    def spec(self) -> RunSpec:
        """The run as a plan asks for it."""
        return RunSpec.model_validate(self.model_dump(exclude={"weights", "rows"}))


class Calibration(_Settings):
    """What the weights of a plan's conditions are found from (`study.calibration`): never from the seeds reported.

    `weights`: those tried, by family, ascending. `examples`: English validation rows of Tr(F).
    """

    seeds: tuple[int, ...] = Field(default=(101, 102), min_length=1)
    examples: int = Field(default=500, gt=1)
    weights: dict[FamilyName, tuple[Annotated[float, Field(gt=0)], ...]] = Field(min_length=1)


class Plan(_Settings):
    """A setup and the conditions it is run under, weights by family; `recipes` are conditions that say more."""

    setup: Setup
    calibration: Calibration | None = None
    conditions: dict[FamilyName, tuple[Weight, ...]] = Field(min_length=1)
    recipes: tuple[Condition, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> "Plan":
        labels = [condition.label for condition in self.expand()]
        if not labels:
            raise ValueError("conditions: no family has a weight; give a family that has none the weight 0")
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"conditions: {twice[0]} is asked for twice")
        return self

    def expand(self) -> list[Condition]:
        """All conditions, in the order of the file."""
        simple = [
            Condition(family=name, weight=weight) for name, weights in self.conditions.items() for weight in weights
        ]
        return [*simple, *self.recipes]


class Encoder(_Settings):
    """A pre-trained encoder.

    Attributes:
        source: "mini-mbert", a Hub id, or a folder.
        revision: the commit of a Hub id.
        needs_gpu: whether it is too large to be trained on a CPU, which is then refused (`devices.require_gpu`).
    """

    source: str
    revision: str | None = None
    needs_gpu: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value

    @property
    def name(self) -> str:
        """The last part of its id or path, which a run keeps."""
        return Path(self.source).name


class Preset(_Settings):
    """A named size of the study: `smoke`, `quick`, `mini`, `small`, `paper`, `xlmr`, or a YAML file like theirs."""

    name: str = Field(pattern=r"^\w[\w.-]*$")  # a folder of data/recorded and figures, and nothing outside them
    encoder: Encoder
    seeds: int = Field(default=1, gt=0)
    plans: dict[PlanName, Plan] = Field(min_length=1)

    def plan(self, name: str) -> Plan:
        """One of its plans.

        Raises:
            FlatlingoError: for a name that is no plan's, or a plan that the preset does not have.
        """
        if name not in PLANS:
            raise FlatlingoError(unknown("plan", name, PLANS))
        if name not in self.plans:
            raise FlatlingoError(f"preset {self.name} has no plan {name!r}; it has {', '.join(self.plans)}")
        return self.plans[name]


def known_presets() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """Read a preset by name, or from a path that ends in `.yaml` or `.yml`.

    Raises:
        FlatlingoError: if there is no such preset, or it does not have the shape of one; the message names the field.
    """
    path = yaml_file(name, "preset", PRESETS, known_presets())
    return validated(Preset, read_yaml(path, "preset"), f"preset {path.name}")


def chosen_seeds(preset: Preset, seeds: int | Sequence[int] | None) -> list[int]:
    """The seeds asked for: how many (1, 2, …, n), which, or by default the preset's number.

    Raises:
        FlatlingoError: for none, one that is negative, or one twice.
    """
    number = preset.seeds if seeds is None else seeds
    chosen = list(range(1, number + 1)) if isinstance(number, int) else list(number)
    if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen):
        raise FlatlingoError(f"seeds must be different numbers, 0 or more; got {seeds!r}")
    return chosen


def calibration_seeds(preset: Preset, plan: str) -> set[int]:
    """The seeds from which a plan's weights are found, and which are not reported."""
    asked = preset.plan(plan).calibration
    return set(asked.seeds) if asked else set()


def expand(
    plan: str,
    preset: Preset,
    *,
    seeds: int | list[int] | None = None,
    encoder: Encoder | None = None,
    task: str | None = None,
) -> list[RunSpec]:
    """The runs of one plan, seeds in the outer loop: when a seed is finished, its study is complete.

    Args:
        plan: one of `PLANS`.
        preset: what to run.
        seeds: how many (1, 2, …, n), or which; the preset's number by default.
        encoder: another one than the preset's.
        task: another one than the plan's: a name, or the path of a description.

    Raises:
        FlatlingoError: for an unknown plan, one that the preset does not have, or impossible seeds.
    """
    asked = preset.plan(plan)
    setup = asked.setup if task is None else asked.setup.model_copy(update={"task": task})
    encoder = encoder or preset.encoder
    return [
        RunSpec(plan=plan, condition=condition, seed=seed, encoder=encoder.name, setup=setup)
        for seed in chosen_seeds(preset, seeds)
        for condition in asked.expand()
    ]
