"""Where the encoder and the rows of a plan lie on this machine, which is no part of a run's configuration."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flatlingo import hub, tasks
from flatlingo.errors import FlatlingoError, unknown
from flatlingo.files import ROOT
from flatlingo.study.presets import Encoder, Preset, expand
from flatlingo.study.runspec import Provenance, RunConfig, RunSpec
from flatlingo.study.setup import Setup
from flatlingo.taskfiles import MINI, REAL_COUNTERPART
from flatlingo.tasks import Task

if TYPE_CHECKING:  # what trains is imported when something is trained: to name the runs of a plan takes no torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sources:
    """The encoder and the rows of a plan.

    Attributes:
        encoder: where it is loaded from.
        task: name of a task, or path of its description.
        data: folder of the rows, for tasks that have files; None for the Hub.
    """

    encoder: Encoder
    task: str
    data: Path | None = None

    @classmethod
    def of(
        cls,
        preset: Preset,
        plan: str,
        *,
        model: str | Path | None = None,
        task: str | Path | None = None,
        data: str | Path | None = None,
    ) -> "Sources":
        """The sources of a preset's plan.

        Args:
            preset: the preset.
            plan: one of its plans.
            model: another encoder than the preset's: `mini-mbert`, a Hub id or a folder.
            task: another task than the plan's: a name, or the path of a description.
            data: folder of rows in XTREME layout, relative to the checkout. A task of the mini world is then replaced
                by the real one of its kind; the sizes and the label noise stay the plan's.
        """
        task = str(task or preset.plan(plan).setup.task)
        if data is not None:
            task = REAL_COUNTERPART.get(task, task)
        encoder = preset.encoder if model is None else Encoder(source=str(model))
        return cls(encoder, task, None if data is None else ROOT / Path(data).expanduser())

    def specs(self, plan: str, preset: Preset, seeds: int | list[int] | None = None) -> list[RunSpec]:
        """The runs of a plan with this encoder and task; see `presets.expand`."""
        return expand(plan, preset, seeds=seeds, encoder=self.encoder, task=tasks.name_of(self.task))

    def resolve(self, specs: list[RunSpec]) -> list[RunConfig]:
        """The runs with what tells their encoder and rows from others.

        Raises:
            FlatlingoError: whatever `hub` and `tasks` refuse.
        """
        weights = _provenance_of_encoder(self.encoder)
        rows = {
            languages: _provenance_of_rows(self.task, self.data, languages)
            for languages in {spec.setup.languages for spec in specs}
        }
        return [RunConfig(**dict(spec), weights=weights, rows=rows[spec.setup.languages]) for spec in specs]

    def load_task(self, setup: Setup, seed: int) -> Task:
        """The rows that a run of this setup and seed trains on and is measured on."""
        second_stage = setup.second_stage
        return tasks.load_task(
            self.task,
            data=self.data,
            languages=setup.languages,
            train_size=setup.train_size,
            validation_size=setup.validation_size,
            seed=seed,
            label_noise=setup.label_noise,
            second_stage_noise=second_stage.label_noise if second_stage else 0.0,
        )

    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer that comes with the encoder, of the same revision."""
        from flatlingo import models

        return models.load_tokenizer(self.encoder.source, revision=self.encoder.revision)

    def load_model(self, spec: RunSpec, labels: Sequence[str]) -> "PreTrainedModel":
        """The pre-trained encoder of a run with a fresh head for the labels, in eval mode on CPU."""
        from flatlingo import devices, models

        changes = {row.how: weight for row, weight in spec.condition.parts if row.changes == "model"}
        # On CPUs attention of separate products trains an eighth faster under bf16, where the fused one casts.
        unfused = spec.setup.precision == "bf16" and devices.device() == devices.CPU
        return models.load_model(
            self.encoder.source,
            labels,
            revision=self.encoder.revision,
            seed=spec.seed,
            attention="eager" if unfused else None,
            **changes,
        )

    def require_gpu(self) -> None:
        """Refuse an encoder that needs a GPU where there is none, see `devices.require_gpu`."""
        if self.encoder.needs_gpu:
            from flatlingo import devices

            devices.require_gpu(f"training {self.encoder.source}")

    def check(self, spec: RunSpec, *, here: bool = True) -> None:
        """Load the task, the tokenizer and the model of a run once, so that bad input is told before hours of compute.

        Args:
            spec: the run.
            here: whether this machine will train it, and must have the GPU that its encoder needs.

        Raises:
            FlatlingoError: whatever `tasks` and `models` refuse, target languages that the task lacks, or no GPU.
        """
        if here:
            self.require_gpu()
        task = self.load_task(spec.setup, spec.seed)
        for language in spec.setup.second_stage.languages if spec.setup.second_stage else ():
            if language not in task.languages:
                raise FlatlingoError(unknown("target language", language, task.languages))
        self.load_tokenizer()
        self.load_model(spec, task.labels)


def _provenance_of_encoder(encoder: Encoder) -> Provenance:
    return Provenance(**hub.provenance(encoder.source, encoder.revision))


def _provenance_of_rows(task: str, data: Path | None, languages: tuple[str, ...]) -> Provenance:
    if task in MINI:
        return _provenance_of_generated_rows(task, languages)
    return Provenance(**tasks.provenance(task, data, languages))


@functools.lru_cache(maxsize=8)  # files may change while a process lives, rows that are generated cannot
def _provenance_of_generated_rows(task: str, languages: tuple[str, ...]) -> Provenance:
    return Provenance(**tasks.provenance(task, None, languages))
