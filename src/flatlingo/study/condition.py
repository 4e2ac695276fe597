"""One regulariser setting, or several together: what a marker of a figure stands for. Plain data, without torch."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from flatlingo.errors import unknown
from flatlingo.settings import Settings
from flatlingo.study.families import FAMILIES, Family, family

PERIODIC = ("fisher_penalty", "trace_penalty", "trace_target")  # families that need not be computed in every step


def _known_family(name: str) -> str:
    if name not in FAMILIES:
        raise ValueError(unknown("family", name, FAMILIES))
    return name


def _pairs(value: object) -> object:
    return tuple(value.items()) if isinstance(value, dict) else value


FamilyName = Annotated[str, AfterValidator(_known_family)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Condition(Settings):
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
