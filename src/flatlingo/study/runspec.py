"""One run: what decides its result, its name and id, and what it costs. Plain data, without torch."""

import hashlib
import json
from typing import Annotated

from pydantic import AfterValidator, Field

from flatlingo.errors import unknown
from flatlingo.randomness import LARGEST_SEED
from flatlingo.settings import Settings
from flatlingo.study.condition import PERIODIC, Condition
from flatlingo.study.setup import Setup

PLANS = ("nli", "paraphrase", "methods", "regularized_second_stage", "technique", "intervention")
PARTS = {None: 1.0, "head": 0.0, "last_layer": 0.25}  # share of a penalty's passes: those of an encoder of four layers
EXACT = 4.0  # a step with an exact trace, in plain ones: two directions are differentiated, for three classes


def _known_plan(name: str) -> str:
    if name not in PLANS:
        raise ValueError(unknown("plan", name, PLANS))
    return name


PlanName = Annotated[str, AfterValidator(_known_plan)]


class Provenance(Settings):
    """Where an encoder or rows came from, and what tells them from others.

    Attributes:
        source: "files", "generated", or the id of a model or data set on the Hub.
        revision: the commit on the Hub.
        sha256: of the files, or of a sample of generated rows.
    """

    source: str
    revision: str | None = None
    sha256: str | None = None


class RunSpec(Settings):
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
