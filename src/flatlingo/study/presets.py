"""What a study trains: presets and their plans, read from YAML, and the runs of a plan. Plain data, without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from flatlingo.errors import FlatlingoError, unknown
from flatlingo.files import PRESETS
from flatlingo.settings import Settings, read_yaml, validated, yaml_file
from flatlingo.study.condition import Condition, FamilyName, Weight
from flatlingo.study.runspec import PLANS, PlanName, RunSpec
from flatlingo.study.setup import Setup


class Calibration(Settings):
    """What the weights of a plan's conditions are found from (`study.calibration`): never from the seeds reported.

    `weights`: those tried, by family, ascending. `examples`: English validation rows of Tr(F).
    """

    seeds: tuple[int, ...] = Field(default=(101, 102), min_length=1)
    examples: int = Field(default=500, gt=1)
    weights: dict[FamilyName, tuple[Annotated[float, Field(gt=0)], ...]] = Field(min_length=1)


class Plan(Settings):
    """A setup and the conditions it is run under, weights by family; `recipes` are conditions that say more.

    `seeds`: how many it is to have, where that is not the preset's number.
    """

    seeds: int | None = Field(default=None, gt=0)
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


class Encoder(Settings):
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


class Preset(Settings):
    """A named size of the study: `smoke`, `quick`, `mini`, `small`, `paper`, `xlmr`, or a YAML file like theirs."""

    name: str = Field(pattern=r"^\w[\w.-]*$")  # a folder of data/recorded and figures, and nothing outside them
    encoder: Encoder
    seeds: int = Field(default=1, gt=0)  # how many its plans are to have
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


def planned_seeds(preset: Preset, plan: str) -> int:
    """How many seeds a plan is to have: its own number, or the preset's."""
    return preset.plan(plan).seeds or preset.seeds


def chosen_seeds(preset: Preset, plan: str, seeds: int | Sequence[int] | None) -> list[int]:
    """The seeds asked for: how many (1, 2, …, n), which, or by default as many as are planned.

    Raises:
        FlatlingoError: for none, one that is negative, or one twice.
    """
    number = planned_seeds(preset, plan) if seeds is None else seeds
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
        seeds: how many (1, 2, …, n), or which; as many as are planned by default.
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
        for seed in chosen_seeds(preset, plan, seeds)
        for condition in asked.expand()
    ]
