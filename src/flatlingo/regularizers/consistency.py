"""Consistency losses: the prediction should not depend on how the input, the network or its weights are perturbed.

`Consistency` takes any perturbation and any divergence; the named methods are choices of the two. With the clean pass'
cross entropy CE as the task loss, q the prediction of the perturbed pass and CE' its cross entropy, the total is

    L = a CE + a' CE' + λ D(p, q),    all three means over the B rows of the (micro-)batch.

Both passes run in train mode, each with dropout masks of its own. Where the perturbed pass is an ordinary pass of other
rows (sampled segmentations, translations, code-switching, dropout), `shared_pass=True` computes both as one pass of 2B
rows: the same loss, other draws of dropout, and less time where a batch is small for its model (16 rows are none for a
MiniLM: benchmarks/results/steps.md). Rows are padded to the longer view.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from flatlingo.errors import FlatlingoError
from flatlingo.regularizers import divergences
from flatlingo.regularizers.base import Regularizer, bare, check_labels, check_softmax, encoder_of, logits_of
from flatlingo.regularizers.divergences import Divergence
from flatlingo.regularizers.hooks import changed_weight
from flatlingo.regularizers.joint import joined
from flatlingo.regularizers.perturbations import (
    AdversarialEmbedding,
    Dropout,
    EmbeddingNoise,
    HiddenNoise,
    ParameterNoise,
    Perturbation,
    SampledSegmentation,
)
from flatlingo.segmentation import Mode

Formula = Literal["text", "code"]


class Consistency(Regularizer):
    """A divergence between the predictions of the clean pass and of a perturbed one.

    The term is (a - 1) CE + a' CE' + λ D. The cross entropies have the task loss' label smoothing. Logs the divergence
    under its own name and the perturbed pass' cross entropy as `view_cross_entropy`.

    Args:
        perturbation: what happens in the second pass.
        divergence: D, from the logits of both passes to a scalar, see `flatlingo.regularizers.divergences`.
        weight: λ, at least 0; weight 0 is plain training.
        task: (a, a'); by default only the clean pass learns from the labels.
        reduction: of the divergence: `"mean"` over the rows; as some released code has it, their `"sum"` (B times the
            mean) or the mean over rows and classes (`"elements"`, 1/C times the mean).
        name: name in the log, where there is more than one such term.
        shared_pass: compute the perturbed pass together with the clean one.

    Raises:
        FlatlingoError: if an argument is not as above, or on `start` if the model is no classifier of two labels or
            more, or cannot take the perturbation.

    >>> from flatlingo.regularizers.divergences import jensen_shannon
    >>> term = Consistency(EmbeddingNoise(0.01, "normal"), jensen_shannon, weight=2.0, name="js")
    """

    name = "consistency"

    def __init__(
        self,
        perturbation: Perturbation,
        divergence: Divergence = divergences.kl,
        weight: float = 1.0,
        *,
        task: tuple[float, float] = (1.0, 0.0),
        reduction: Literal["mean", "sum", "elements"] = "mean",
        name: str | None = None,
        shared_pass: bool = False,
    ):
        self.name = name or self.name
        super().__init__(weight)
        if reduction not in ("mean", "sum", "elements"):
            raise FlatlingoError(f"unknown reduction {reduction!r} of {self.name}; use 'mean', 'sum' or 'elements'")
        if shared_pass and type(perturbation).shared_rows is Perturbation.shared_rows:
            raise FlatlingoError(
                f"the perturbed pass of {self.name} ({type(perturbation).__name__}) is no ordinary pass that could be "
                "shared; leave shared_pass out"
            )
        self.perturbation, self.divergence, self.task, self.reduction = perturbation, divergence, task, reduction
        self.shared_pass, self._shared = shared_pass, []
        self.recomputable, self.uses_labels = perturbation.recomputable, task != (1, 0)
        self.needs_pass_alone = perturbation.needs_pass_alone

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Check the model; start the perturbation."""
        check_softmax(model, self.name)
        self.perturbation.start(model, seed=seed)

    @property
    def needs_text(self) -> bool:
        """Whether the perturbation is one of the texts."""
        return type(self.perturbation).features is not Perturbation.features

    def features(self, row: Mapping[str, Any], *, seed: int, epoch: int, max_length: int) -> dict[str, list[int]]:
        """Encode the perturbed view of a row."""
        return self.perturbation.features(row, seed=seed, epoch=epoch, max_length=max_length)

    def forward_context(self) -> AbstractContextManager:
        """What the perturbation needs of the clean pass."""
        return self.perturbation.forward_context()

    @property
    def shares_pass(self) -> bool:
        """Whether the perturbed rows go through the clean pass, as `shared_pass` says."""
        return self.shared_pass

    def shared_context(self, model: nn.Module, batch: Mapping[str, Tensor]) -> AbstractContextManager:
        """Send the perturbed rows through the clean pass, if the two are shared."""
        return self._sharing(model, batch) if self.shared_pass else nullcontext()

    @contextmanager
    def _sharing(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Iterator[None]:
        rows = self.perturbation.shared_rows(_inputs(batch), self.columns(batch))
        padding_id = getattr(extract_model_from_parallel(model).config, "pad_token_id", None) or 0
        with joined(model, rows, padding_id=padding_id) as self._shared:
            yield

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor], outputs: Any
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Run the perturbed pass, unless the clean one did, and compute the term."""
        labels, inputs = batch["labels"], _inputs(batch)
        check_labels(outputs.logits, labels, self.name)
        if self.shared_pass and not self._shared:
            raise FlatlingoError(f"{self.name} saw no forward pass; run it inside shared_context(model, batch)")
        perturbed = (
            self._shared.pop() if self.shared_pass else self.perturbation(model, inputs, self.columns(batch), outputs)
        )
        clean, view = (self.perturbation.compared(of, inputs) for of in (outputs, perturbed))
        divergence = self.divergence(clean, view)
        term = self.weight * self._scale(logits_of(outputs)) * divergence
        cross_entropy = partial(F.cross_entropy, target=labels, label_smoothing=self.label_smoothing)
        with torch.set_grad_enabled(self.uses_labels):
            view_loss = cross_entropy(logits_of(perturbed))
        if self.uses_labels:
            term = self.task[1] * view_loss + (self.task[0] - 1) * cross_entropy(logits_of(outputs)) + term
        function = getattr(self.divergence, "func", self.divergence)
        return term, {getattr(function, "__name__", "divergence"): divergence, "view_cross_entropy": view_loss}

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the perturbation's generators, for a checkpoint."""
        return self.perturbation.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put the perturbation's generators back into a state that `state_dict` gave."""
        self.perturbation.load_state_dict(state)

    def _scale(self, logits: Tensor) -> float:
        return {"mean": 1.0, "sum": float(logits.shape[0]), "elements": 1 / logits.shape[1]}[self.reduction]


class SubwordConsistency(Consistency):
    """Multi-view subword regularisation (MVR) of Wang, Ruder & Neubig (NAACL 2021).

    x̂ is the tokenizer's segmentation of a row and x' a sampled one (`SampledSegmentation`). The total is

        L = ½ CE(x̂) + ½ CE(x') + λ KL(p_τ(y|x̂) ‖ p(y|x')),    KL = (1/B) Σ_i Σ_c p_ic (log p_ic - log p'_ic),

    as in the authors' code: means over the B rows, one direction only, the gradient flows through both distributions,
    and the temperature divides the logits of x̂ alone. Both passes run in train mode with independent dropout.

    The views are drawn with a generator keyed by seed and row, and in `clean` mode also by epoch. In `faithful` mode
    a row therefore has the same view in every epoch, exactly as from the authors' cached data set, which holds one
    draw per row. (Upstream λ = 0 still trains on both views; here weight 0 is plain training.)

    Args:
        tokenizer: a WordPiece tokenizer (BERT's) or a SentencePiece unigram one (XLM-R's).
        weight: λ, at least 0. The authors use 0.6.
        p: for WordPiece, the probability of rejecting a match. The authors use 0.2.
        mode: `"faithful"` or `"clean"`, see `SampledSegmentation`.
        temperature: τ > 0. The authors use 1 for classification.
        alpha: for SentencePiece, α of `UnigramSampler`. The authors use 0.2.
        nbest: for SentencePiece, from how many segmentations to draw; -1, as the authors, from all.
        shared_pass: compute both passes as one, see above.

    Raises:
        FlatlingoError: if an argument is not as above.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        weight: float = 0.6,
        p: float = 0.2,
        mode: Mode = "faithful",
        temperature: float = 1.0,
        alpha: float = 0.2,
        nbest: int = -1,
        shared_pass: bool = False,
    ):
        if not temperature > 0:
            raise FlatlingoError(f"the temperature of {self.name} must be positive, got {temperature}")
        divergence = partial(divergences.kl, temperature=temperature)
        perturbation = SampledSegmentation(tokenizer, p, mode, alpha, nbest)
        super().__init__(perturbation, divergence, weight, task=(0.5, 0.5), shared_pass=shared_pass)


class BothViews(Consistency):
    """Subword regularisation without consistency (Kudo, ACL 2018): L = ½ CE(x̂) + ½ CE(x').

    x̂ is the usual segmentation and x' a sampled one, as in `SubwordConsistency`, of which this is the control without
    its divergence: what MVR gains over it is the consistency, what it gains over plain training the augmentation.

    Args:
        tokenizer: as for `SubwordConsistency`.
        p: as for `SubwordConsistency`.
        mode: as for `SubwordConsistency`.
        alpha: as for `SubwordConsistency`.
        shared_pass: compute both passes as one.

    Raises:
        FlatlingoError: as for `SubwordConsistency`.
    """

    name = "both_views"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        p: float = 0.2,
        mode: Mode = "faithful",
        alpha: float = 0.2,
        shared_pass: bool = False,
    ):
        perturbation = SampledSegmentation(tokenizer, p, mode, alpha)
        super().__init__(perturbation, divergences.kl, weight=1.0, task=(0.5, 0.5), shared_pass=shared_pass)

    def _scale(self, logits: Tensor) -> float:
        return 0.0  # the divergence is logged, and adds nothing


class R3F(Consistency):
    """R3F of Aghajanyan et al. (ICLR 2021, eqs. 3-5): L = CE + λ [KL(p ‖ q) + KL(q ‖ p)] under embedding noise.

    Means over rows, no stop-gradient on the predictions; the embeddings are held fixed in the noisy pass, as in the
    authors' code. With dropout on, the two passes differ by their masks far more than by a noise of 1e-5.

    Args:
        weight: λ. The authors' code has 1.0 (0.7 in its RTE example).
        epsilon: size of the noise; the authors' code has 1e-5.
        distribution: `"uniform"` (their default) or `"normal"`.

    Raises:
        FlatlingoError: if an argument is not as above.
    """

    name = "r3f"

    def __init__(
        self, weight: float = 1.0, epsilon: float = 1e-5, distribution: Literal["uniform", "normal"] = "uniform"
    ):
        super().__init__(EmbeddingNoise(epsilon, distribution), divergences.symmetric_kl, weight)


class R4F(R3F):
    """R4F of Aghajanyan et al. (ICLR 2021): R3F, and a head whose weight W is divided by its largest singular value.

    The last linear layer computes with W/σ(W) throughout training, σ exact and differentiated (the authors' code takes
    one power iteration); afterwards W/σ(W) becomes the weight. Checkpoints on the way hold W itself, as does a model
    whose training is broken off; Tr(F) that is watched in training is with respect to W, so that it differs from that
    of the same function afterwards. That the authors normalise the last layer only is from memory.

    Args:
        weight: as for `R3F`.
        epsilon: as for `R3F`.
        distribution: as for `R3F`.

    Raises:
        FlatlingoError: as for `R3F`; on `start`, if the model's head has no linear output layer, or several; in
            training, if a pass does not use it.
    """

    name = "r4f"
    _head: nn.Linear | None = None

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Find the output layer; start the perturbation."""
        super().start(model, seed=seed)
        self._head = _output_layer(model)
        self._passes = 0

    @contextmanager
    def training_context(self, model: nn.Module) -> Iterator[None]:
        """Have every pass use W/σ(W) as the head's weight, and leave it so after training."""
        with changed_weight([self._head], self._normalised):
            yield
        with torch.no_grad():
            self._head.weight.copy_(self._normalised(self._head, self._head.weight))

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor], outputs: Any
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Compute the term, after checking that the normalised head was used in the clean pass."""
        if self._head is not None and not self._passes:
            raise FlatlingoError(
                f"the head that {self.name} normalises was not used in the forward pass; run it inside "
                "training_context(model), and use R3F for models that do without their last linear layer"
            )
        term = super().__call__(model, batch, outputs)
        self._passes = 0
        return term

    def _normalised(self, _layer: nn.Module, weight: Tensor) -> Tensor:
        """W/σ(W), σ(W) the largest singular value, computed in float32 or better."""
        self._passes += 1
        precise = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return weight / torch.linalg.matrix_norm(precise, 2).to(weight.dtype)


class RDrop(Consistency):
    """R-Drop of Liang et al. (NeurIPS 2021): two passes that differ in their dropout masks.

    By `formula`:

    * `"text"`: L = ½ (CE + CE') + α ½ [KL(p ‖ q) + KL(q ‖ p)], means over rows, the authors' own description. (From
      memory, the paper's equation has CE + CE' instead of their mean: an α there is twice the α here.)
    * `"code"`: L = CE + CE' + α ½ Σ_i [KL(p_i ‖ q_i) + KL(q_i ‖ p_i)], as their released BERT classifier: a mean and a
      sum over the B rows, so α only means something together with B. There α = 0.5.

    No stop-gradient.

    Args:
        weight: α.
        formula: `"text"` or `"code"`.
        shared_pass: compute both passes as one, as the authors do.

    Raises:
        FlatlingoError: if an argument is not as above, or on `start` if the model has no dropout.
    """

    name = "r_drop"

    def __init__(self, weight: float = 1.0, formula: Formula = "text", shared_pass: bool = False):
        task, reduction = _by_formula(self.name, formula, ((0.5, 0.5), "mean"), ((1.0, 1.0), "sum"))
        super().__init__(
            Dropout(), divergences.mean_symmetric_kl, weight, task=task, reduction=reduction, shared_pass=shared_pass
        )


def log_odds_gap(clean: Tensor, view: Tensor) -> Tensor:
    """2 Σ_i Σ_c q_ic ([log q_ic/(1 - q_ic)] - [log p_ic/(1 - p_ic)]): what the steps of SMART's code increase.

    A sum over rows, [·] held fixed, with their 1e-6 against division by 0 (`stable_kl` of namisan/mt-dnn).
    """
    p, q = clean.softmax(-1), view.softmax(-1)
    p_odds, q_odds = (-(1 / (side + 1e-6) - 1 + 1e-6).detach().log() for side in (p, q))
    return 2 * (q * (q_odds - p_odds)).sum()


class SMART(Consistency):
    """The smoothness-inducing part of SMART (Jiang et al., ACL 2020): L = CE + λ max_δ [KL(p ‖ q_δ) + KL(q_δ ‖ p)].

    δ is noise on the token embeddings, found by `AdversarialEmbedding`. By `formula`:

    * `"text"`: ‖δ‖_∞ ≤ ε, steps projected into this ball, which increase the divergence itself. ε = σ = 1e-5, η = 1e-3
      and the normalisation of the step within a row are from memory; so are the λ in {1, 3, 5} the paper tries.
    * `"code"`: the step as in the authors' code, which normalises δ instead of projecting it, so that each token's
      largest entry becomes about 1. The steps increase `log_odds_gap`, and in the last pass each KL holds its first
      argument fixed. η is 1e-3 here too; with the 1e-5 of their command line the steps hardly move the noise.

    The paper's other part, the Bregman proximal point step, is not included.

    Args:
        weight: λ; 1 in the authors' code.
        formula: `"text"` or `"code"`.
        steps: K; 1 in the authors' code.

    Raises:
        FlatlingoError: if an argument is not as above, or on `start` if the model has no token embeddings.
    """

    name = "smart"

    def __init__(self, weight: float = 1.0, formula: Formula = "text", steps: int = 1):
        update, ascent, divergence = _by_formula(
            self.name,
            formula,
            ("projected", divergences.symmetric_kl, divergences.symmetric_kl),
            ("normalised", log_odds_gap, divergences.stopped_symmetric_kl),
        )
        super().__init__(AdversarialEmbedding(steps=steps, update=update, divergence=ascent), divergence, weight)


class VAT(Consistency):
    """Virtual adversarial training on embeddings (Miyato, Dai & Goodfellow, ICLR 2017): L = CE + λ KL([p] ‖ q_δ).

    δ is the direction of length `radius` in which the KL grows fastest, found by one power iteration. The paper
    normalises the embeddings to unit variance; here lengths are in units of the standard deviation of the embedding
    weights instead, and the embeddings stay as they are. The defaults are those of the released code. The length of
    the probe counts padded positions, so that a row's δ depends a little on the longest row of its batch.

    (VAT-D, Park et al. 2022, which replaces tokens by those a language model proposes, is another method.)

    Args:
        weight: λ.
        radius: length of a row's δ.
        probe: length of the noise at which the gradient is taken.
        steps: power iterations.

    Raises:
        FlatlingoError: if an argument is not as above, or on `start` if the model has no token embeddings.
    """

    name = "vat"

    def __init__(self, weight: float = 1.0, radius: float = 5.0, probe: float = 0.1, steps: int = 1):
        perturbation = AdversarialEmbedding(radius, probe, steps=steps, update="power")
        super().__init__(perturbation, divergences.stopped_kl, weight)


class LNSR(Consistency):
    """Layer-wise noise stability regularisation (Hua et al., NAACL 2021): L = CE + λ Σ_{r>b} ‖h_r - h̃_r‖².

    h̃_r are the outputs of the layers above b after noise on the output of layer b, whose norm is ρ times that of the
    output (in expectation); mean over rows and tokens, see `HiddenNoise`.

    Not confirmed from the paper: λ, b, the reduction and equal weights of the layers. ρ = 5 % is what its Figure 1
    uses. Its variant with in-manifold noise is not included. With dropout on, the distance includes that between two
    dropout masks.

    Args:
        weight: λ.
        layer: b, counted from 1.
        rho: ρ.

    Raises:
        FlatlingoError: if an argument is not as above, or on `start` if there is no layer above b.
    """

    name = "lnsr"

    def __init__(self, weight: float = 1.0, layer: int = 1, rho: float = 0.05):
        super().__init__(HiddenNoise(layer, rho, compare="hidden"), divergences.squared_distance, weight)


class XTune(Consistency):
    """The example consistency of xTune (Zheng et al., ACL 2021): L = CE + λ₁ [KL([p] ‖ q) + KL([q] ‖ p)].

    [·] is held fixed; only the clean pass learns from the labels. By `formula`, the mean is over rows (`"text"`) or, as
    in the authors' code, over rows and classes (`"code"`, 1/C of it). Their model consistency, which needs a model of a
    first stage, is not included.

    Args:
        perturbation: the authors use `CodeSwitching` (ratio 0.3 on XNLI, 0.5 on PAWS-X), `Translation`,
            `EmbeddingNoise` (uniform, 1e-5) and, on other tasks, sampled segmentations.
        weight: λ₁; 5 in the authors' scripts, of formula `"code"`: it is 5/C of `"text"`.
        formula: `"code"`, of which the default weight is, or `"text"`.
        shared_pass: compute both passes as one, for a perturbation of the texts.

    Raises:
        FlatlingoError: if an argument is not as above, or on `start` if the model cannot take the perturbation.
    """

    name = "xtune"

    def __init__(
        self, perturbation: Perturbation, weight: float = 5.0, formula: Formula = "code", shared_pass: bool = False
    ):
        reduction = _by_formula(self.name, formula, "mean", "elements")
        super().__init__(
            perturbation, divergences.stopped_symmetric_kl, weight, reduction=reduction, shared_pass=shared_pass
        )


class WeightNoise(Consistency):
    """Consistency under noise on the weights, the left side of equation (1) as a loss: L = CE + λ KL(p_θ ‖ p_{θ+ε}).

    ε ~ N(0, σ² I) over all trainable parameters (`ParameterNoise`), the gradient flows through both. For small σ and
    without dropout the expected term is λ ½ σ² Tr(F) of the batch. Stickland & Murray (2021) derive this link and do
    not train with it; the defaults are ours.

    Args:
        weight: λ.
        sigma: σ.

    Raises:
        FlatlingoError: if an argument is not as above.
    """

    name = "weight_noise"

    def __init__(self, weight: float = 1.0, sigma: float = 1e-3):
        super().__init__(ParameterNoise(sigma), divergences.kl, weight)


def _inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The clean columns that a model takes, without labels."""
    return {column: values for column, values in batch.items() if "/" not in column and column != "labels"}


def _by_formula(name: str, formula: Formula, text: Any, code: Any) -> Any:
    if formula not in ("text", "code"):
        raise FlatlingoError(f"unknown formula {formula!r} of {name}; use 'text' or 'code'")
    return text if formula == "text" else code


def _output_layer(model: nn.Module) -> nn.Linear:
    """The one linear layer of the head that gives as many numbers as there are labels."""
    model, encoder = bare(model), encoder_of(model)
    below = set(encoder.modules()) if encoder is not None else set()
    count = getattr(model.config, "num_labels", None)
    heads = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == count and module not in below
    ]
    if len(heads) > 1:  # peft keeps the untrained head beside the one it trains
        heads = [head for head in heads if head.weight.requires_grad]
    if len(heads) != 1:
        raise FlatlingoError(
            f"{type(model).__name__} ends in {len(heads) or 'no'} linear layers that R4F could normalise; use R3F"
        )
    return heads[0]
