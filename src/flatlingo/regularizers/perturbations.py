"""Perturbations of the input, of the network or of its weights, for `Consistency`."""

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedTokenizerBase

from flatlingo.errors import FlatlingoError
from flatlingo.regularizers.base import Resumable, bare, check_precision, logits_of
from flatlingo.regularizers.divergences import Divergence, stopped_kl
from flatlingo.regularizers.hooks import changed_arguments, changed_lookup, changed_output
from flatlingo.rowfiles import texts_of
from flatlingo.segmentation import Mode, subword_sampler

_WORD = re.compile(r"[^\W\d_]+")


class Perturbation(Resumable):
    """A second, perturbed pass of the classifier over a batch.

    The hooks are those of a `Regularizer`; calling a perturbation runs the pass. Texts are perturbed in `features`
    with a generator keyed by seed, epoch and row; everything else draws from a generator of its own, on the model's
    device, whose state goes into checkpoints. Only dropout draws from the global generator, as in the clean pass.
    """

    recomputable = True
    """Whether the perturbed pass can run under gradient checkpointing, as for a `Regularizer`."""

    needs_pass_alone = False
    """Whether the clean pass must hold its own rows only, as for a `Regularizer`."""

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Check that the model can take the perturbation; seed the generator."""

    def features(self, row: Mapping[str, Any], *, seed: int, epoch: int, max_length: int) -> dict[str, list[int]]:
        """Encode a perturbed view of a row's texts, for perturbations that have one."""
        return {}

    def forward_context(self) -> AbstractContextManager:
        """Context of the clean forward pass, for perturbations that need to see it."""
        return nullcontext()

    def shared_rows(self, inputs: Mapping[str, Tensor], view: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """Rows whose ordinary pass is the perturbed one, for perturbations that have such; arguments as for a call."""
        return None

    def __call__(self, model: nn.Module, inputs: Mapping[str, Tensor], view: Mapping[str, Tensor], outputs: Any) -> Any:
        """Run the perturbed pass.

        Args:
            model: the classifier, in train mode.
            inputs: the clean inputs, without labels.
            view: what `features` encoded, collated.
            outputs: what the clean pass returned.

        Returns:
            What the model returns for the perturbed pass.
        """
        raise NotImplementedError

    def compared(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """What a divergence compares of the outputs of either pass: the logits, unless said otherwise."""
        return logits_of(outputs)


class View(Perturbation):
    """A perturbed text, encoded in `features`; the model itself is left alone."""

    def shared_rows(self, inputs: Mapping[str, Tensor], view: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The encoded view, whose pass is an ordinary one."""
        return view

    def __call__(self, model: nn.Module, inputs: Mapping[str, Tensor], view: Mapping[str, Tensor], outputs: Any) -> Any:
        """Run the model on the view."""
        return model(**view)


class SampledSegmentation(View):
    """Another segmentation of the same texts, drawn by the sampler for the tokenizer's kind (`subword_sampler`).

    In `clean` mode drawn for each row and epoch; in `faithful` mode once per row, as in the cached data sets of Wang et
    al. (2021).

    Args:
        tokenizer: a WordPiece tokenizer (BERT's) or a SentencePiece unigram one (XLM-R's).
        p: WordPiece: probability of rejecting a match.
        mode: `"faithful"` or `"clean"`; for WordPiece see also `WordPieceSampler`.
        alpha: SentencePiece: α of `UnigramSampler`.
        nbest: SentencePiece: -1, or n of `UnigramSampler`.

    Raises:
        FlatlingoError: if the tokenizer is of neither kind, or an argument is not as above.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        p: float = 0.2,
        mode: Mode = "faithful",
        alpha: float = 0.2,
        nbest: int = -1,
    ):
        self.sampler = subword_sampler(tokenizer, p=p, mode=mode, alpha=alpha, nbest=nbest)
        self.mode = mode

    def features(self, row: Mapping[str, Any], *, seed: int, epoch: int, max_length: int) -> dict[str, list[int]]:
        """Encode the sampled view of a row."""
        draw = epoch if self.mode == "clean" else "once"
        rng = random.Random(f"{seed}/{draw}/{row['row_id']}")
        return self.sampler.encode(**texts_of(row), max_length=max_length, rng=rng)


class Translation(View):
    """The same row in another language.

    Args:
        tokenizer: tokenizer of the model.
        rows: the rows of the other language (`row_id`, `text_a`, for pairs `text_b`), aligned with the training rows by
            `row_id` (default: position).

    Raises:
        FlatlingoError: if there are no rows or two share a `row_id`; in training, if a row has no translation or an
            empty one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: Iterable[Mapping[str, Any]]):
        aligned = [(row.get("row_id", position), row) for position, row in enumerate(rows)]
        self.tokenizer, self.rows = tokenizer, dict(aligned)
        if not aligned:
            raise FlatlingoError("there are no translated rows; check the language and the split")
        if len(self.rows) < len(aligned):
            raise FlatlingoError("two translated rows share a row_id, so rows and translations cannot be aligned")

    def features(self, row: Mapping[str, Any], *, seed: int, epoch: int, max_length: int) -> dict[str, list[int]]:
        """Encode the translation of a row."""
        translated = self.rows.get(row["row_id"])
        if translated is None:
            raise FlatlingoError(f"row {row['row_id']!r} has no translation; give rows aligned by row_id")
        texts = texts_of(translated)
        if empty := [name for name in texts_of(row) if row[name].strip() and not texts.get(name, "").strip()]:
            raise FlatlingoError(f"the translation of row {row['row_id']!r} has an empty {empty[0]}; leave the row out")
        return _encode(self.tokenizer, texts.values(), max_length)


class CodeSwitching(View):
    """Words replaced by translations from a bilingual lexicon, drawn for each row and epoch.

    Every word that the lexicon knows, as it is written or in lower case, is replaced with probability `ratio` by one
    of its translations, all equally likely. A word is a run of letters, so texts written without spaces are hardly
    switched, and words of scripts with vowel signs (Hindi, Thai) are not found. xTune (Zheng et al. 2021) uses ratios
    of 0.3 (XNLI) and 0.5 (PAWS-X).

    Args:
        tokenizer: tokenizer of the model.
        lexicon: from a word to its translation or translations, in any number of languages.
        ratio: probability in (0, 1].

    Raises:
        FlatlingoError: if the lexicon is empty or holds an empty translation, or the ratio is not as above.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, lexicon: Mapping[str, str | Sequence[str]], ratio: float = 0.3
    ):
        if not 0 < ratio <= 1:
            raise FlatlingoError(f"the code-switching ratio must lie in (0, 1], got {ratio}")
        if not lexicon:
            raise FlatlingoError("the code-switching lexicon is empty; give a dict of words and translations")
        self.tokenizer, self.ratio = tokenizer, ratio
        self.lexicon = {word: [to] if isinstance(to, str) else list(to) for word, to in lexicon.items()}
        if bad := [word for word, to in self.lexicon.items() if not to or not all(word.strip() for word in to)]:
            raise FlatlingoError(f"the code-switching lexicon has an empty translation of {bad[0]!r}; leave it out")

    def features(self, row: Mapping[str, Any], *, seed: int, epoch: int, max_length: int) -> dict[str, list[int]]:
        """Encode the code-switched view of a row."""
        rng = random.Random(f"{seed}/{epoch}/{row['row_id']}")
        texts = [self.switch(text, rng) for text in texts_of(row).values()]
        return _encode(self.tokenizer, texts, max_length)

    def switch(self, text: str, rng: random.Random) -> str:
        """Draw a code-switched text; one number is drawn for each word that the lexicon knows."""
        return _WORD.sub(lambda match: self._word(match.group(), rng), text)

    def _word(self, word: str, rng: random.Random) -> str:
        translations = self.lexicon.get(word) or self.lexicon.get(word.lower())
        return rng.choice(translations) if translations and rng.random() < self.ratio else word


class Dropout(Perturbation):
    """The same pass again, with another dropout mask from the global generator."""

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Refuse a model that has no dropout: its two passes are the same."""
        config = getattr(model, "config", None)
        settings = [value for key, value in vars(config).items() if "drop" in key] if config is not None else []
        settings += [module.p for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
        if not any(isinstance(value, float) and value > 0 for value in settings):
            raise FlatlingoError(
                "the model has no dropout, so two passes do not differ; load it with dropout above 0 (for example 0.1)"
            )

    def shared_rows(self, inputs: Mapping[str, Tensor], view: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The clean rows again: a second pass draws another dropout."""
        return inputs

    def __call__(self, model: nn.Module, inputs: Mapping[str, Tensor], view: Mapping[str, Tensor], outputs: Any) -> Any:
        """Run the model once more."""
        return model(**inputs)


class Noise(Perturbation):
    """A perturbation that draws from a generator of its own, seeded as the run; two such terms draw the same."""

    _generator: torch.Generator | None = None

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Seed the generator, on the model's device."""
        self._generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers."""
        self._check_started()
        return torch.empty_like(like, requires_grad=False).normal_(generator=self._generator)

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform numbers in [-1, 1)."""
        self._check_started()
        return torch.empty_like(like, requires_grad=False).uniform_(-1, 1, generator=self._generator)

    def _check_started(self) -> None:
        if self._generator is None:
            raise FlatlingoError(f"{type(self).__name__} has no generator yet; call start(model, seed=0) first")


class TokenNoise(Noise):
    """Noise on the rows of the token embeddings that a pass looks up first (in an encoder-decoder, its encoder)."""

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Find the token embeddings; seed the generator."""
        super().start(model, seed=seed)
        self._embeddings = _token_embeddings(model)
        check_precision([module.weight for module in self._embeddings], "noise on token embeddings")

    @contextmanager
    def added(self, noise: Callable[[Tensor, Tensor], Tensor], *, fixed: bool) -> Iterator[None]:
        """Within the context, of one pass, `noise(ids, embeddings)` is added to the embeddings, in their layout.

        Args:
            noise: in units of the embedding matrix, which some models multiply by √(hidden size) when they look it up.
            fixed: whether to hold the embeddings themselves fixed.
        """
        self._check_started()

        def change(module: nn.Module, ids: Tensor, embedded: Tensor) -> Tensor:
            embedded = embedded.detach() if fixed else embedded
            return embedded + getattr(module, "embed_scale", 1.0) * noise(ids, embedded)

        with changed_lookup(self._embeddings, change):
            yield


class EmbeddingNoise(TokenNoise):
    """Noise on the token embeddings: uniform in [-ε, ε) or normal with standard deviation ε.

    As in R3F the embeddings themselves are held fixed in this pass: no gradient reaches them through it (but through a
    decoder's, which have no noise).

    Args:
        epsilon: ε > 0.
        distribution: `"uniform"` or `"normal"`.

    Raises:
        FlatlingoError: if an argument is not as above; on `start`, if the model has no token embeddings or they are in
            half precision; in training, if a pass does not use them.
    """

    def __init__(self, epsilon: float = 1e-5, distribution: Literal["uniform", "normal"] = "uniform"):
        self.epsilon = _positive("the embedding noise", epsilon)
        if distribution not in ("uniform", "normal"):
            raise FlatlingoError(f"unknown distribution of embedding noise {distribution!r}; use 'uniform' or 'normal'")
        self.distribution = distribution

    def __call__(self, model: nn.Module, inputs: Mapping[str, Tensor], view: Mapping[str, Tensor], outputs: Any) -> Any:
        """Run the model with noise on its embeddings."""
        draw = self.normal if self.distribution == "normal" else self.uniform
        model = extract_model_from_parallel(model)  # DDP would take the embeddings for unused, which the task trains
        with self.added(lambda _ids, embedded: self.epsilon * draw(embedded), fixed=True):
            return model(**inputs)


class AdversarialEmbedding(TokenNoise):
    """Noise δ on the token embeddings, moved by K gradient steps to where a divergence grows.

    δ starts normal with standard deviation σ, and g is the gradient with respect to δ of the divergence between the
    clean pass (held fixed) and the pass with δ. One step, by `update`:

    * `"projected"`: δ_i ← clip(δ_i + η g_i/‖g_i‖_∞, ±radius) for each row i, as in the text of SMART;
    * `"normalised"`: u = δ + η g and then δ ← u/(‖u‖_∞ + 1e-6) for each token. Not kept in a small ball: the largest
      entry of every token's δ becomes about 1;
    * `"power"`: δ_i ← g_i/‖g_i‖₂ for each row, the power iteration of virtual adversarial training: g is taken at a
      probe of length σ, and the last δ has length `radius`, both in units of the standard deviation of the
      embedding weights at the start.

    K + 1 passes, each with a dropout mask of its own. Only in the last one do the weights learn.

    Args:
        radius: of the ball; not used by `"normalised"`.
        sigma: σ > 0.
        step_size: η > 0; not used by `"power"`.
        steps: K, at least 1.
        update: how δ moves, one of the three above.
        divergence: what the steps increase.

    Raises:
        FlatlingoError: if an argument is not as above; on `start`, if the model has no token embeddings or they are in
            half precision; in training, if a pass does not use them or looks them up in a layout that is not known.
    """

    def __init__(
        self,
        radius: float = 1e-5,
        sigma: float = 1e-5,
        step_size: float = 1e-3,
        steps: int = 1,
        update: Literal["projected", "normalised", "power"] = "projected",
        divergence: Divergence = stopped_kl,
    ):
        self.radius, self.sigma = _positive("the adversarial radius", radius), _positive("the adversarial noise", sigma)
        self.step_size = _positive("the adversarial step size", step_size)
        if steps < 1:
            raise FlatlingoError(f"the number of adversarial steps must be at least 1, got {steps}")
        if update not in ("projected", "normalised", "power"):
            raise FlatlingoError(f"unknown adversarial update {update!r}; use 'projected', 'normalised' or 'power'")
        self.steps, self.update, self.divergence = steps, update, divergence

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Find the token embeddings and their scale; seed the generator."""
        super().start(model, seed=seed)
        self._unit = float(self._embeddings[0].weight.detach().std()) if self.update == "power" else 1.0

    def __call__(self, model: nn.Module, inputs: Mapping[str, Tensor], view: Mapping[str, Tensor], outputs: Any) -> Any:
        """Look for the worst noise, then run the model with it."""
        delta = self.delta(model, inputs, outputs)
        with self.added(lambda _ids, _embedded: delta, fixed=False):
            return model(**inputs)

    def delta(self, model: nn.Module, inputs: Mapping[str, Tensor], outputs: Any) -> Tensor:
        """The noise after K steps, as the model lays its embeddings out: (batch, length, hidden size) for most."""
        model, clean = extract_model_from_parallel(model), logits_of(outputs).detach()
        delta, axes = None, ()

        def present(ids: Tensor, embedded: Tensor) -> Tensor:
            nonlocal delta, axes
            if delta is None:
                axes = _axes_within_rows(ids, inputs["input_ids"])
                delta = self.normal(embedded)
                delta = self._probe(delta, axes) if self.update == "power" else self.sigma * delta
            delta = delta.detach().requires_grad_()
            return delta

        for _ in range(self.steps):
            with torch.enable_grad():
                with self.added(present, fixed=True):
                    logits = logits_of(model(**inputs))
                (gradient,) = torch.autograd.grad(self.divergence(clean, logits), delta)
            delta = self._moved(delta.detach(), gradient, axes)
        return delta * (self.radius / self.sigma) if self.update == "power" else delta

    def _moved(self, delta: Tensor, gradient: Tensor, axes: tuple[int, ...]) -> Tensor:
        """δ after a step; the axes are those within a row."""
        if self.update == "power":
            return self._probe(gradient, axes)
        if self.update == "projected":
            step = self.step_size * gradient / _clear(gradient.abs().amax(axes, keepdim=True))
            return (delta + step).clamp(-self.radius, self.radius)
        delta = delta + self.step_size * gradient
        return delta / (delta.abs().amax(-1, keepdim=True) + 1e-6)

    def _probe(self, direction: Tensor, axes: tuple[int, ...]) -> Tensor:
        norm = _clear(torch.linalg.vector_norm(direction, dim=axes, keepdim=True))
        return self.sigma * self._unit * direction / norm


class ParameterNoise(Noise):
    """Noise on the weights, the perturbation of equation (1): a pass with θ + ε, ε ~ N(0, σ² I).

    ε is drawn anew for every pass, over all trainable parameters. The gradient reaches θ through θ + ε; the
    parameters themselves are never touched. For small σ and without dropout, E KL(p_θ ‖ p_{θ+ε}) = ½ σ² Tr(F) + O(σ⁴)
    over the rows of the batch. Needs memory for one more copy of the weights.

    Args:
        sigma: σ > 0.

    Raises:
        FlatlingoError: if σ is not positive, or on `start` if nothing is trainable or in half precision.
    """

    recomputable = False  # in the backward pass the weights are θ again

    def __init__(self, sigma: float = 1e-3):
        self.sigma = _positive("the parameter noise", sigma)

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Seed the generator."""
        super().start(model, seed=seed)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trainable:
            raise FlatlingoError("the model has no trainable parameters to put noise on; unfreeze some")
        check_precision(trainable, "noise on weights")

    def __call__(self, model: nn.Module, inputs: Mapping[str, Tensor], view: Mapping[str, Tensor], outputs: Any) -> Any:
        """Run the model with noise on its weights."""
        bare = extract_model_from_parallel(model)
        noisy = {
            name: parameter + self.sigma * self.normal(parameter)
            for name, parameter in bare.named_parameters()
            if parameter.requires_grad
        }
        return functional_call(bare, noisy, kwargs=dict(inputs))


class HiddenNoise(Noise):
    """Normal noise on the output of an encoder layer; it goes on through the layers above.

    For a token with output h of size H, the noise is (ρ ‖h‖₂/√H) z with z ~ N(0, I): its expected squared norm is
    ρ² ‖h‖₂². With `compare="hidden"` the divergence compares not the logits but the outputs h_r of the layers r above,
    stacked to shape (batch, layers, length, H), padding set to 0 and each row divided by the square root of
    its number of tokens: so `squared_distance` is the mean over rows and tokens of Σ_r ‖h_r - h̃_r‖².

    Args:
        layer: which layer's output, counted from 1.
        rho: ρ > 0, relative size of the noise.
        compare: `"logits"` or `"hidden"`.

    Raises:
        FlatlingoError: if an argument is not as above, or on `start` if the model has no such layer (or, with
            `"hidden"`, none above it); in the first step, if it does not return what is compared.

    In an encoder-decoder the layers are the encoder's.
    """

    recomputable = False  # in the backward pass the layer would give its output without noise

    def __init__(self, layer: int = 1, rho: float = 0.05, compare: Literal["logits", "hidden"] = "logits"):
        self.rho = _positive("the hidden noise", rho)
        if compare not in ("logits", "hidden"):
            raise FlatlingoError(f"hidden noise cannot compare {compare!r}; use 'logits' or 'hidden'")
        self.layer, self.compare = layer, compare
        self.needs_pass_alone = compare == "hidden"  # other rows would pad the hidden states

    _outputs: tuple[Tensor, Tensor] | None = None
    """Of the layer, without noise and with it."""

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Find the layer; seed the generator."""
        super().start(model, seed=seed)
        self._model, self._checked = bare(model), False
        encoder = self._model.get_encoder() if _is_encoder_decoder(self._model) else self._model
        count = getattr(getattr(self._model, "config", None), "num_hidden_layers", None)
        stacks = [module for module in encoder.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
        if not stacks:
            raise FlatlingoError(f"{type(self._model).__name__} has no list of encoder layers to put noise between")
        if any(sum(child in stacks for child in module.children()) > 1 for module in encoder.modules()):
            raise FlatlingoError(
                f"{type(self._model).__name__} keeps the parts of its layers in lists side by side, so that no module "
                "is a layer to put noise behind"
            )
        highest = count - (self.compare == "hidden")
        if not 1 <= self.layer <= highest:
            raise FlatlingoError(f"noise at layer {self.layer}: this needs a layer from 1 to {highest} of the {count}")
        self._module = stacks[0][self.layer - 1]

    def forward_context(self) -> AbstractContextManager:
        """Have the pass return its hidden states, if they are compared."""
        self._check_started()
        return changed_arguments(self._model, output_hidden_states=True) if self.compare == "hidden" else nullcontext()

    def __call__(self, model: nn.Module, inputs: Mapping[str, Tensor], view: Mapping[str, Tensor], outputs: Any) -> Any:
        """Run the model with noise on the layer's output."""
        self._outputs = None
        with self.forward_context(), changed_output(self._module, self._noisy):
            perturbed = model(**inputs)
        if self._outputs is None:
            raise FlatlingoError(
                f"a pass of {type(self._model).__name__} skips its layer {self.layer}, or calls it by another way: "
                "it has no noise; if there is a probability of skipping layers (layerdrop), set it to 0"
            )
        if self.compare == "hidden" and not self._checked:
            self._check(self._states(perturbed), inputs)
            self._checked = True
        self._outputs = None
        return perturbed

    def compared(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """The logits or, if hidden states are compared, the outputs of the layers above the noise."""
        if self.compare == "logits":
            return logits_of(outputs)
        hidden = torch.stack(self._states(outputs)[self.layer + 1 :], 1)
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).to(hidden.dtype)
        return hidden * (mask / mask.sum(1, keepdim=True).sqrt())[:, None, :, None]

    def _states(self, outputs: Any) -> Sequence[Tensor]:
        """The output of every encoder layer, after the embeddings."""
        states = getattr(outputs, "hidden_states", None) or getattr(outputs, "encoder_hidden_states", None) or ()
        if len(states) != 1 + (count := self._model.config.num_hidden_layers):
            raise FlatlingoError(
                f"a pass of {type(self._model).__name__} returns {len(states)} hidden states and not 1 + {count}, one "
                "a layer: it skips layers (set layerdrop to 0), or compare='logits' is the way"
            )
        return states

    def _check(self, states: Sequence[Tensor], inputs: Mapping[str, Tensor]) -> None:
        """Refuse a model whose hidden states are not its layers', of shape (rows, length, size)."""
        rows, length = inputs["input_ids"].shape
        given = [output.transpose(*axes) for output in self._outputs for axes in ((0, 0), (0, 1))]
        if not (
            all(state.shape[:2] == (rows, length) for state in states)
            # before the noise: so transformers notes it for some models
            and any(torch.equal(output[:rows, :length], states[self.layer]) for output in given)
        ):
            raise FlatlingoError(
                f"the hidden states of {type(self._model).__name__} are not the outputs of its encoder layers, of "
                "shape (rows, length, size), so they cannot be compared; use HiddenNoise(compare='logits')"
            )

    def _noisy(self, hidden: Tensor) -> Tensor:
        size = self.rho / math.sqrt(hidden.shape[-1]) * hidden.detach().norm(dim=-1, keepdim=True)
        noisy = hidden + size * self.normal(hidden)
        self._outputs = hidden, noisy
        return noisy


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], max_length: int) -> dict[str, list[int]]:
    # as a batch of one: called on single texts, a tokenizer drops an empty second text and its separator
    encoded = tokenizer(*([text] for text in texts), truncation=True, max_length=max_length)
    return {column: values[0] for column, values in encoded.items()}


def _token_embeddings(model: nn.Module) -> list[nn.Module]:
    """The token embeddings and all modules that share their weight; which one a pass calls is seen in the pass."""
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embeddings = None
    weight = getattr(embeddings, "weight", None)
    if not isinstance(weight, Tensor):
        raise FlatlingoError(f"{type(model).__name__} has no token embeddings to put noise on")
    tied = [m for m in model.modules() if getattr(m, "weight", None) is weight and not isinstance(m, nn.Linear)]
    return [embeddings, *(module for module in tied if module is not embeddings)]


def _axes_within_rows(ids: Tensor, input_ids: Tensor) -> tuple[int, int]:
    """The axes of embeddings within a row: (1, 2), or (0, 2) where a model puts the length first."""
    rows, length = input_ids.shape
    fits = [  # a model may pad the ids further
        ids.ndim == 2 and given.shape[0] == rows and given.shape[1] >= length for given in (ids, ids.mT)
    ]
    if all(fits):
        fits = [torch.equal(given[:, :length], input_ids) for given in (ids, ids.mT)]
    if not any(fits):
        raise FlatlingoError(
            f"the model looks up ids of shape {tuple(ids.shape)} for rows of shape {tuple(input_ids.shape)}, so which "
            "noise is which row's cannot be told; use EmbeddingNoise"
        )
    return (1, 2) if fits[0] else (0, 2)


def _is_encoder_decoder(model: nn.Module) -> bool:
    return getattr(getattr(model, "config", None), "is_encoder_decoder", False)


def _positive(what: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise FlatlingoError(f"{what} must be a finite number above 0, got {value}")
    return value


def _clear(norm: Tensor) -> Tensor:
    """A norm to divide by, never 0."""
    return norm.clamp_min(torch.finfo(norm.dtype).tiny)
