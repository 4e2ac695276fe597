"""Consistency losses: the prediction should not depend on how the input is perturbed."""

import random
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from flatlingo.errors import FlatlingoError
from flatlingo.regularizers.base import Regularizer, logits_of
from flatlingo.segmentation import Mode, WordPieceSampler


class SubwordConsistency(Regularizer):
    """Multi-view subword regularisation (MVR) of Wang, Ruder & Neubig (NAACL 2021).

    x̂ is the tokenizer's segmentation of a row and x' a sampled one (`WordPieceSampler`). With the clean pass' CE(x̂)
    as the task loss, the term ½(CE(x') - CE(x̂)) + λ KL makes the total

        L = ½ CE(x̂) + ½ CE(x') + λ KL(p_τ(y|x̂) ‖ p(y|x')),    KL = (1/B) Σ_i Σ_c p_ic (log p_ic - log p'_ic),

    as in the authors' code: means over the B rows, one direction only, the gradient flows through both distributions,
    and the temperature divides the logits of x̂ alone. Both passes run in train mode with independent dropout.

    The views are drawn with a generator keyed by seed and row, and in `clean` mode also by epoch. In `faithful` mode
    a row therefore has the same view in every epoch, exactly as from the authors' cached data set, which holds one
    draw per row. (Upstream λ = 0 still trains on both views; here weight 0 is plain training.)

    Args:
        tokenizer: a WordPiece tokenizer.
        weight: λ, at least 0. The authors use 0.6.
        p: probability of rejecting a match. The authors use 0.2.
        mode: `"faithful"` or `"clean"`, see `WordPieceSampler`.
        temperature: τ > 0. The authors use 1 for classification.

    Raises:
        FlatlingoError: if an argument is not as above.
    """

    name = "consistency"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        weight: float = 0.6,
        p: float = 0.2,
        mode: Mode = "faithful",
        temperature: float = 1.0,
    ):
        super().__init__(weight)
        if not temperature > 0:
            raise FlatlingoError(f"the temperature of {self.name} must be positive, got {temperature}")
        self.sampler = WordPieceSampler(tokenizer, p, mode)
        self.temperature = temperature

    def features(self, row: Mapping[str, Any], *, seed: int, epoch: int, max_length: int) -> dict[str, list[int]]:
        """Encode the sampled view of a row."""
        draw = epoch if self.sampler.mode == "clean" else "once"
        rng = random.Random(f"{seed}/{draw}/{row['row_id']}")
        return self.sampler.encode_pair(row["text_a"], row["text_b"], max_length=max_length, rng=rng)

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor], outputs: Any
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Compute ½(CE(x') - CE(x̂)) + λ KL with a second forward pass on the view; logs `kl` and the view's CE."""
        labels, clean, view = batch["labels"], logits_of(outputs), logits_of(model(**self.columns(batch)))
        kl = F.kl_div(F.log_softmax(view, -1), F.softmax(clean / self.temperature, -1), reduction="batchmean")
        view_cross_entropy = F.cross_entropy(view, labels)
        term = (view_cross_entropy - F.cross_entropy(clean, labels)) / 2 + self.weight * kl
        return term, {"kl": kl, "view_cross_entropy": view_cross_entropy}
