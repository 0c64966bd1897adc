"""The losses of RECIPE, one function a term (arXiv 2405.03279, section 4, "Model Training").

Each gives its value element by element, a query or an answer token at a time; a step divides sums by the counts of its
whole batch, whichever worker holds them. A `margin` drops, as the authors' code does and the paper's formulas do not
show, what is won already: where the right probability exceeds `margin` times the highest other one.

Shape letters: B queries, A answer tokens of all rows, V vocabulary, F candidate keys, K key width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def answer_nll(logits_AV: Tensor, answers_A: Tensor, *, margin: float | None = None) -> Tensor:
    """-log f(o | p ⊕ q) of each answer token, [A]: reliability and generality.

    Args:
        logits_AV: logits that predict each answer token.
        answers_A: int64 answer tokens.
        margin: see above.
    """
    logits_AV = logits_AV.float()
    nll_A = functional.cross_entropy(logits_AV, answers_A, reduction="none")
    return nll_A * _not_won(logits_AV, answers_A, margin)


def locality_kl(edited_AV: Tensor, unedited_AV: Tensor) -> Tensor:
    """KL(f(·|q) ‖ f(·|p ⊕ q)) at each of the answer's positions, [A]."""
    edited = functional.log_softmax(edited_AV.float(), -1)
    unedited = functional.log_softmax(unedited_AV.float(), -1)
    return functional.kl_div(edited, unedited, reduction="none", log_target=True).sum(-1)


def neighbour_nll(logits_BF: Tensor, own_B: Tensor) -> Tensor:
    """Each query against its own key, [B]; the other keys and the sentinel are negatives.

    Args:
        logits_BF: similarities of queries of edits (reliability or generality prompts) to all candidates.
        own_B: int64, the column of each query's own key.
    """
    return functional.cross_entropy(logits_BF, own_B, reduction="none")


def sentinel_nll_unrelated(logits_BF: Tensor, *, margin: float | None = None) -> Tensor:
    """Queries that no fact answers against Θ, [B]; Θ is the last candidate, all keys are negatives."""
    return _nll_of_last(logits_BF, margin)


def sentinel_nll_related(logits_BF: Tensor, own_B: Tensor, *, margin: float | None = None) -> Tensor:
    """Queries of edits against Θ with their own key left out, [B], so that Θ ranks second."""
    return _nll_of_last(logits_BF.scatter(1, own_B[:, None], -torch.inf), margin)


def similarities(queries_BK: Tensor, candidates_FK: Tensor) -> Tensor:
    """Similarities [B, F] of scaled queries to all candidates."""
    return queries_BK @ candidates_FK.T


def _nll_of_last(logits_BF: Tensor, margin: float | None) -> Tensor:
    last_B = torch.full((len(logits_BF),), logits_BF.shape[1] - 1, device=logits_BF.device)
    nll_B = functional.cross_entropy(logits_BF, last_B, reduction="none")
    return nll_B * _not_won(logits_BF, last_B, margin)


def _not_won(logits: Tensor, right: Tensor, margin: float | None) -> Tensor | float:
    """1 where the right class, of those along dimension 1, does not exceed the highest other by the factor."""
    if margin is None:
        return 1.0
    with torch.no_grad():
        own = logits.gather(1, right.unsqueeze(1))
        others = logits.scatter(1, right.unsqueeze(1), -torch.inf).amax(1)
        return (own.squeeze(1) <= others + math.log(margin)).to(logits.dtype)
