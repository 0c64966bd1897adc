"""The next token of every row, and what the LLM thought of it.

Shape letters: N rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

MIN_LOGPROB = -9999.0  # in place of minus infinity, which JSON cannot say
NOT_FINITE = -1  # in place of a token, where the scores of a row are no numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredToken:
    """A token with the LLM's natural log-probability, before temperature and top_p.

    Attributes:
        token_id: the token.
        logprob: None for the first of a prompt, which nothing precedes.
        top: the most probable tokens there, most probable first, with theirs.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How one row's tokens are chosen.

    Attributes:
        temperature: 0 is greedy.
        top_p: smallest set of tokens with this much probability is sampled from.
        random: draws one number a token, so that a seed gives the same text in any company; None where greedy.
    """

    temperature: float
    top_p: float
    random: Random | None


def choose(logits_NV: Tensor, choices: Sequence[Choice]) -> Tensor:
    """Token ids, int64 [N]; NOT_FINITE for a row whose scores are not."""
    best_N, tokens_N = logits_NV.max(-1)
    for nucleus in (False, True):
        rows = [
            row for row, choice in enumerate(choices) if choice.random is not None and (choice.top_p < 1) == nucleus
        ]
        if rows:
            picked = [choices[row] for row in rows]
            places = torch.tensor(rows, device=logits_NV.device)
            tokens_N[places] = _draw(logits_NV[places], picked, nucleus=nucleus)
    return tokens_N.masked_fill(~best_N.isfinite(), NOT_FINITE)


def score(logits_NV: Tensor, tokens_N: Tensor, num_top: Sequence[int]) -> list[ScoredToken]:
    """What the LLM thought of tokens, each with its own number of alternatives."""
    logprobs_NV = logits_NV.float().log_softmax(-1).clamp(min=MIN_LOGPROB)
    logprobs = logprobs_NV.gather(1, tokens_N.clamp(min=0)[:, None])[:, 0].tolist()
    most = min(max(num_top), logprobs_NV.shape[1])
    if most == 0:
        return [
            ScoredToken(token_id=token, logprob=logprob)
            for token, logprob in zip(tokens_N.tolist(), logprobs, strict=True)
        ]
    top = logprobs_NV.topk(most)
    return [
        ScoredToken(token_id=token, logprob=logprob, top=tuple(zip(ids[:num], values[:num], strict=True)))
        for token, logprob, ids, values, num in zip(
            tokens_N.tolist(), logprobs, top.indices.tolist(), top.values.tolist(), num_top, strict=True
        )
    ]


def _draw(logits_NV: Tensor, choices: Sequence[Choice], *, nucleus: bool) -> Tensor:
    """Where a uniform number falls in the cumulated probabilities.

    In float64: another batch changes the last bits of a float32 logit, and the draw must not notice.
    """
    device = logits_NV.device
    temperature_N1 = _column([choice.temperature for choice in choices], device)
    drawn_N1 = _column([choice.random.random() for choice in choices if choice.random is not None], device)
    scores_NV = logits_NV.double()
    probabilities_NV = ((scores_NV - scores_NV.amax(-1, keepdim=True)) / temperature_N1).softmax(-1)
    if not nucleus:
        return _fall(probabilities_NV.cumsum(-1), drawn_N1)
    ordered_NV, order_NV = probabilities_NV.sort(dim=-1, descending=True, stable=True)
    cumulated_NV = ordered_NV.cumsum(-1)
    # Those before which less than top_p was gathered; the first always.
    num_kept_N1 = ((cumulated_NV - ordered_NV) < _column([choice.top_p for choice in choices], device)).sum(
        -1, keepdim=True
    )
    last_N1 = (num_kept_N1 - 1).clamp(min=0)
    kept_NV = cumulated_NV.minimum(cumulated_NV.gather(1, last_N1))
    return order_NV.gather(1, _fall(kept_NV, drawn_N1)[:, None].minimum(last_N1))[:, 0]


def _fall(cumulated_NV: Tensor, drawn_N1: Tensor) -> Tensor:
    place_N1 = torch.searchsorted(cumulated_NV, drawn_N1 * cumulated_NV[:, -1:], right=True)
    return place_N1[:, 0].clamp(max=cumulated_NV.shape[1] - 1)


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)[:, None]
