"""Weights averaged over the end of a training, for any Trainer."""

import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_swa_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from flatlingo.errors import FlatlingoError
from flatlingo.files import replacing

FILE = "average.safetensors"


class WeightAverage(TrainerCallback):
    r"""Ends a training with the mean of the weights over its last steps (stochastic weight averaging).

    .. math:: \bar\theta = \frac1n \sum_{t=T-n+1}^{T} \theta_t

    over the last n of T updates, n the given share of T, at least one; of all parameters that are trained, added up in
    float32 at least and then rounded to their precision. It costs a copy of the weights and an addition a step. The
    learning rate stays the Trainer's: with one that decays to 0, as in `finetune`, the last weights are close to each
    other, and averaging does less than with the high constant rate of the paper. The model has the mean after
    training only: what is evaluated on the way, also after the last step, are the running weights.

    Checkpoints keep the running mean (as a callback that stands before `Checkpoints`): a training that is resumed from
    a checkpoint in its own `output_dir`, where the mean is looked for, ends in the same weights.

    Args:
        share: of the updates, above 0, up to 1.

    Raises:
        FlatlingoError: if the share is not as above; when training begins, if the Trainer would put other weights in
            the mean's place (`load_best_model_at_end`), or resumes from a checkpoint without the mean.

    Warns:
        UserWarning: if training was stopped before the mean was whole.

    References:
        Izmailov et al., UAI 2018; the running mean is that of `torch.optim.swa_utils`.
    """

    def __init__(self, share: float):
        if not 0 < share <= 1:
            raise FlatlingoError(f"the share of the updates to average must be above 0, up to 1; got {share}")
        self.share = share
        self._mean: dict[str, Tensor] = {}
        self._averaged = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Begin anew or, in a resumed training, from the checkpoint's mean."""
        if args.load_best_model_at_end:
            raise FlatlingoError(
                "load_best_model_at_end keeps the weights of one checkpoint; leave it out, or WeightAverage"
            )
        self._mean, self._averaged = {}, 0
        if (done := state.global_step - self._first(state) + 1) < 1:
            return
        path = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", FILE)
        if not path.is_file():
            raise FlatlingoError(
                f"{path.parent} holds no mean of the weights so far; resume from an earlier checkpoint"
            )
        device = next(kwargs["model"].parameters()).device
        self._mean, self._averaged = load_file(path, device=str(device)), done

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Add the weights of one of the last steps to the mean."""
        if state.global_step < self._first(state):
            return
        weights = _trained(kwargs["model"])
        if not self._mean:
            self._mean = {name: _wide(parameter.detach()).clone() for name, parameter in weights.items()}
        else:
            latest = [_wide(weights[name]) for name in self._mean]
            get_swa_multi_avg_fn()(list(self._mean.values()), latest, self._averaged)
        self._averaged += 1

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Write the mean into the checkpoint."""
        if self._mean and state.is_world_process_zero:
            path = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", FILE)
            with replacing(path) as temporary:
                save_file(self._mean, temporary)

    @torch.no_grad()
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Give the model the mean."""
        last = state.max_steps - self._first(state) + 1
        if self._averaged < last:
            warnings.warn(
                f"training stopped at step {state.global_step} of {state.max_steps}, and the mean is of the last "
                f"{last} steps: {self._averaged or 'none'} of these were averaged",
                stacklevel=2,
            )
        weights = _trained(kwargs["model"])
        for name, mean in self._mean.items():
            weights[name].copy_(mean)

    def _first(self, state: TrainerState) -> int:
        """The first step whose weights count."""
        return state.max_steps - max(1, round(self.share * state.max_steps)) + 1


def _wide(weights: Tensor) -> Tensor:
    """In float32 at least: in half precision the steps of a running mean are lost in rounding."""
    return weights.to(torch.promote_types(weights.dtype, torch.float32))


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
