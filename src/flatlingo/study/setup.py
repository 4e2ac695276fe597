"""How the runs of a plan are trained and measured. Plain data, without torch."""

from typing import Annotated, Literal

from pydantic import Field

from flatlingo.settings import Settings


class Training(Settings):
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


class Segmentation(Settings):
    """How the second view of the consistency loss is segmented: `p` for WordPiece, `alpha` for a unigram tokenizer.

    `shared_pass`: both views go through the model in one pass, which saves time on a GPU: the same loss, other draws of
    dropout.
    """

    p: float = Field(default=0.2, ge=0, lt=1)
    alpha: float = Field(default=0.2, gt=0, exclude_if=lambda alpha: alpha == 0.2)
    mode: Literal["faithful", "clean"] = "faithful"
    shared_pass: bool = Field(default=False, exclude_if=lambda shared: not shared)


class SecondStage(Settings):
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


class Measurement(Settings):
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


class Setup(Settings):
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
