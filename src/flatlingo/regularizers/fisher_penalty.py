"""The Fisher penalty: the squared norm of the batch gradient under labels drawn from the model."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from flatlingo.errors import FlatlingoError
from flatlingo.fisher.selection import Selection
from flatlingo.regularizers.base import logits_of, squared_norm
from flatlingo.regularizers.finite_differences import RandomState, ShiftedPass, squared_norm_by_finite_differences
from flatlingo.regularizers.periodic import PeriodicPenalty, check_not_checkpointed


class FisherPenalty(PeriodicPenalty):
    """Penalise a one-draw proxy of Tr(F) (Jastrzebski et al. 2021, "Catastrophic Fisher Explosion").

    With ḡ = (1/B) Σ_i ∇_θ log p(ŷ_i|x_i), the gradient of the mean cross entropy with respect to all trainable
    parameters, and labels ŷ_i ~ p(y|x_i) drawn from the logits of the clean pass itself (dropout on, same mask),

        E_ŷ ‖ḡ‖² = (1/B²) Σ_i E‖g_i‖² = Tr(F_batch)/B,

    because the scores g_i have mean zero under the model. B is the number of rows of one forward pass on one device: a
    micro-batch under gradient accumulation, a process' share of the batch under several processes, each of which draws
    labels of its own. Scalings of the added term:

    * `"batch"`: λ B ‖ḡ‖², an unbiased estimate of λ Tr(F_batch). Terms are averaged over micro-batches and processes,
      so in the mean it is λ Tr(F) of all the rows of an update, however they are split; only its noise depends on B;
    * `"paper"`: λ ‖ḡ‖², as in the paper: in the mean λ Tr(F)/B, so λ only means something together with B, not with the
      number of micro-batches or processes.

    The first author's later code (hf-sharpness, 2022) adds w ‖ḡ‖² over transformers' `train_batch_size`, the rows of a
    forward pass, which knows nothing of accumulation: its w is B·B times the λ of `"batch"`, on one GPU 64 times with
    micro-batches of 8, however many are accumulated, and 1,024 times with 32 rows at once.

    The estimate is very noisy (for large batches a standard deviation of √2 ‖F‖/Tr(F) of its mean): measure Tr(F) with
    `fisher_trace`, never with the logged penalty; `TracePenalty` adds the trace itself.

    The gradient of the term is 2 λ B H ḡ, H the Hessian of the mean cross entropy for the labels drawn. Two methods:

    * `"exact"`, the default, differentiates twice, which fused attention kernels cannot; the clean pass runs under
      PyTorch's composite attention. The only one under bf16.
    * `"finite-difference"` takes the difference of two ordinary gradients, the second at a distance `radius` along the
      first and with the same dropout masks: any attention, but a thousand times the error.

    Why exact is the default: for a MiniLM it takes hardly more time, and less memory (benchmarks/results/penalties.md
    has both, and `TracePenalty`). Finite differences need copies of the parameters instead of a graph, so they save
    memory only where activations outweigh parameters: long inputs, large batches.

    Args:
        weight: λ, at least 0.
        scaling: `"batch"` or `"paper"`, see above.
        method: `"exact"` or `"finite-difference"`.
        radius: the distance in the space of the parameters for finite differences. A larger one is less exact, a
            smaller one is lost in rounding; 1e-4 was the best of 1e-2 … 3e-5 for a small BERT in float32.
        every: compute the term in every k-th step only, times k.
        parameters: whose gradients make up ḡ: "head" (pooler and head), "last_layer" (the encoder's last layer too),
            names, or a function of the name; all trainable ones by default. Lower layers then cost only the backward
            pass of the task loss, with which the term's own is one, and for "head" attention may be fused. Every
            parameter below still has a gradient of the term. Exact method only.

    Raises:
        FlatlingoError: if an argument is not as above; on `start`, if the model recomputes activations in the backward
            pass (checkpointing), or the method is exact and `parameters` selects none or the model's attention has no
            double backward; in training, if the method is
            finite-difference and the clean pass ran in half precision or cannot be repeated, or the logits are not
            finite.
    """

    name = "fisher_penalty"
    logged = "squared_norm"
    recomputable = False  # no double backward; what finite differences ran elsewhere would be run again at θ

    def __init__(
        self,
        weight: float = 0.0003,
        scaling: Literal["batch", "paper"] = "batch",
        method: Literal["exact", "finite-difference"] = "exact",
        radius: float = 1e-4,
        every: int = 1,
        parameters: Selection = None,
    ):
        super().__init__(weight, every, parameters)
        if scaling not in ("batch", "paper"):
            raise FlatlingoError(f"unknown Fisher penalty scaling {scaling!r}; use 'batch' or 'paper'")
        if method not in ("exact", "finite-difference"):
            raise FlatlingoError(f"unknown Fisher penalty method {method!r}; use 'exact' or 'finite-difference'")
        if not 0 < radius < float("inf"):
            raise FlatlingoError(f"the radius of finite differences must be positive, got {radius}")
        if parameters is not None and method != "exact":
            raise FlatlingoError(
                "finite differences need the gradients of all parameters, whichever are penalised, so parameters= "
                "would save nothing; use method='exact'"
            )
        self.scaling, self.method, self.radius = scaling, method, radius
        self.needs_pass_alone = method != "exact"  # the pass is repeated, with its dropout masks
        self._generator: torch.Generator | None = None
        self._random_state: RandomState | None = None
        self._checked = False

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Check that the model can be differentiated as the method asks; seed the generator of the labels."""
        super().start(model, seed=seed)
        if self.method == "exact":
            self.choose_parameters(model)
        else:
            check_not_checkpointed(model, f"{self.name} runs passes at other weights than the backward pass would")
        self._generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
        self._checked = False

    def recording_context(self) -> AbstractContextManager:
        """Composite attention where it is needed; for finite differences, remember the generators' states."""
        return self.attention_context() if self.method == "exact" else self._remembering()

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        if self._generator is not None:
            self._random_state = RandomState.now(self._generator.device)
        yield

    def penalty(self, model: nn.Module, batch: Mapping[str, Tensor], outputs: Any) -> tuple[Tensor, Tensor]:
        """Draw the labels; the scaled penalty, and ‖ḡ‖²."""
        if self._generator is None:
            raise FlatlingoError("the Fisher penalty has no generator yet; call start(model, seed=0) before training")
        logits = logits_of(outputs)
        labels = draw_labels(logits, self._generator)
        if self.method == "exact":
            penalty = squared_gradient_norm(self.penalised().values(), logits, labels)
        else:
            shifted = self._shifted_pass(model, batch, outputs)
            penalty = squared_norm_by_finite_differences(shifted, logits, labels, self.radius)
        return (len(labels) if self.scaling == "batch" else 1) * penalty, penalty

    def _shifted_pass(self, model: nn.Module, batch: Mapping[str, Tensor], outputs: Any) -> ShiftedPass:
        model = extract_model_from_parallel(model)
        _refuse_half_precision(model, outputs.logits)
        if self._random_state is None:
            raise FlatlingoError("the Fisher penalty saw no forward pass; run it inside forward_context()")
        inputs = {column: values for column, values in batch.items() if "/" not in column and column != "labels"}
        shifted = ShiftedPass(model, inputs, self._random_state)
        self._random_state = None
        if not self._checked:
            shifted.check(outputs.logits)
            self._checked = True
        return shifted


def _refuse_half_precision(model: nn.Module, logits: Tensor) -> None:
    """Finite differences drown in the rounding of bf16."""
    half = (torch.bfloat16, torch.float16)
    by_accelerate = hasattr(model, "_original_forward")  # autocast inside forward, logits cast back to float32
    by_hand = torch.is_autocast_enabled(logits.device.type) or logits.dtype in half
    if by_accelerate or by_hand or any(parameter.dtype in half for parameter in model.parameters()):
        raise FlatlingoError(
            "the Fisher penalty by finite differences needs float32, and the forward pass ran in half precision: train "
            "without bf16 and fp16, or use method='exact'"
        )


def draw_labels(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A label per row, drawn from the softmax of logits of shape (B, classes).

    The draws of `torch.multinomial`, bit for bit, which waits for a GPU to check its input; here NaN in is an arbitrary
    label out.
    """
    p = logits.detach().softmax(-1)
    return (p / torch.empty_like(p).exponential_(generator=generator)).argmax(-1)


def squared_gradient_norm(
    parameters: Iterable[Tensor], logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """‖∇_θ (1/B) Σ_i -log p(y_i|x_i)‖² over some parameters, itself differentiable with respect to all.

    Args:
        parameters: which; those that are frozen, or that the logits do not depend on, count nothing.
        logits: shape (B, classes), with their graph.
        labels: shape (B,).
        label_smoothing: of the cross entropy.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    return sum((squared_norm(gradient) for gradient in gradients if gradient is not None), logits.new_zeros(()))
