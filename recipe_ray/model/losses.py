"""The losses of RECIPE, one function a term (arXiv 2405.03279, section 4, "Model Training").

Shape letters: B edits, A answer tokens, V vocabulary, F keys, K key width.
"""

import torch
from torch import Tensor
from torch.nn import functional


def answer_loss(logits_BAV: Tensor, answers_BA: Tensor, mask_BA: Tensor) -> Tensor:
    """-log f(o | p ⊕ q), a mean over answer tokens: reliability and generality.

    Args:
        logits_BAV: logits that predict each answer token.
        answers_BA: int64 answer tokens; any token id where the mask is 0.
        mask_BA: 1 where an answer token stands.
    """
    nll_BA = functional.cross_entropy(logits_BAV.float().transpose(1, 2), answers_BA, reduction="none")
    return (nll_BA * mask_BA).sum() / mask_BA.sum()


def locality_loss(edited_BAV: Tensor, unedited_BAV: Tensor, mask_BA: Tensor) -> Tensor:
    """KL(f(·|q) ‖ f(·|p ⊕ q)), a mean over the answer's positions."""
    edited = functional.log_softmax(edited_BAV.float(), -1)
    unedited = functional.log_softmax(unedited_BAV.float(), -1)
    kl_BA = functional.kl_div(edited, unedited, reduction="none", log_target=True).sum(-1)
    return (kl_BA * mask_BA).sum() / mask_BA.sum()


def neighbour_loss(queries_BK: Tensor, keys_FK: Tensor, sentinel_K: Tensor, own_B: Tensor) -> Tensor:
    """Each query against its own key, the other keys and the sentinel being negatives.

    Args:
        queries_BK: scaled queries of edits (reliability or generality prompts).
        keys_FK: all keys of the batch.
        sentinel_K: Θ.
        own_B: int64, each query's own row in `keys_FK`.
    """
    return functional.cross_entropy(similarities(queries_BK, keys_FK, sentinel_K), own_B)


def sentinel_loss_unrelated(queries_BK: Tensor, keys_FK: Tensor, sentinel_K: Tensor) -> Tensor:
    """Queries that no fact answers against Θ, all keys being negatives."""
    logits = similarities(queries_BK, keys_FK, sentinel_K)
    return functional.cross_entropy(logits, torch.full((len(logits),), len(keys_FK), device=logits.device))


def sentinel_loss_related(queries_BK: Tensor, keys_FK: Tensor, sentinel_K: Tensor, own_B: Tensor) -> Tensor:
    """Queries of edits against Θ with their own key left out, so that Θ ranks second."""
    logits = similarities(queries_BK, keys_FK, sentinel_K)
    logits = logits.scatter(1, own_B[:, None], -torch.inf)
    return functional.cross_entropy(logits, torch.full((len(logits),), len(keys_FK), device=logits.device))


def similarities(queries_BK: Tensor, keys_FK: Tensor, sentinel_K: Tensor) -> Tensor:
    """Logits [B, F + 1] of queries against all keys and, last, the sentinel."""
    return queries_BK @ torch.cat([keys_FK, sentinel_K[None]]).T
