"""A gradient as its factors: what went into a projection at each token of an edit, and the loss's gradient behind it.

The gradient of a loss in W of y = W u is Σ δ uᵀ over the tokens, with u the input and δ the gradient in the output
(Mitchell et al. 2022, arXiv 2110.11309, section 3): learned editors of weights work on those vectors.

Shape letters: B rows, T tokens, A answer length, N tokens of all edits, G groups of rows, I inner width of the MLP,
D LLM width, V vocabulary.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recipe_ray.eval.methods.answers import answer_ids
from recipe_ray.eval.methods.layers import hooked
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.model.losses import answer_nll
from recipe_ray.model.prefix import PaddedRows

TokenChoice = Literal["all", "answer"]

BATCH_SIZE = 32  # edits that go through the LLM together; what comes out does not depend on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """Tokens of edits, an edit after another, as each projection sees them.

    Attributes:
        inputs: for each projection u, float32 [N, I].
        gradients: for each projection δ, float32 [N, D], of the edit's mean negative log-likelihood an answer token.
        edit_N: int64, the edit that each token belongs to.
    """

    inputs: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    edit_N: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRows:
    """Questions with their answers behind them, as the LLM reads them.

    Attributes:
        rows: left-padded.
        answers_BA: int64 answer tokens, right-aligned, 0 before them.
        mask_BA: 1 where an answer token stands.
    """

    rows: PaddedRows
    answers_BA: Tensor
    mask_BA: Tensor

    @classmethod
    def make(cls, llm: FrozenLLM, questions: Sequence[tuple[str, str]], *, answer_end: str) -> "AnswerRows":
        """Rows for pairs of prompt and answer; `answer_end` follows every answer."""
        answers = [answer_ids(llm, answer, answer_end) for _, answer in questions]
        width = max(map(len, answers))
        return cls(
            rows=llm.pad(
                [llm.tokenize(prompt) + ids for (prompt, _), ids in zip(questions, answers, strict=True)],
                [0] * len(questions),
                "first",
            ),
            answers_BA=torch.tensor([[0] * (width - len(ids)) + ids for ids in answers], device=llm.device),
            mask_BA=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in answers], device=llm.device),
        )

    def logits(self, llm: FrozenLLM) -> Tensor:
        """Logits [B, A, V] that predict the answer tokens."""
        return llm.answer_logits(self.rows, None, num_answer_tokens=self.answers_BA.shape[1])


def edit_factors(
    llm: FrozenLLM,
    projections: Sequence[nn.Module],
    questions: Sequence[tuple[str, str]],
    *,
    answer_end: str,
    tokens: TokenChoice,
) -> Factors:
    """Factors of each edit's own gradient: an edit's tokens come out alike whatever edits stand beside it.

    Args:
        llm: the LLM as it is now.
        projections: whose weights are to change.
        questions: prompt and target of each edit.
        answer_end: text behind every target, so that answers end.
        tokens: `answer` for the tokens from which answer tokens are predicted, `all` for all before the last answer
            token (behind which no gradient flows).
    """
    parts = [
        _factors(llm, projections, questions[start : start + BATCH_SIZE], start, answer_end, tokens)
        for start in range(0, len(questions), BATCH_SIZE)
    ]
    return Factors(
        inputs=tuple(torch.cat(one) for one in zip(*(part.inputs for part in parts), strict=True)),
        gradients=tuple(torch.cat(one) for one in zip(*(part.gradients for part in parts), strict=True)),
        edit_N=torch.cat([part.edit_N for part in parts]),
    )


def _factors(
    llm: FrozenLLM,
    projections: Sequence[nn.Module],
    questions: Sequence[tuple[str, str]],
    first: int,
    answer_end: str,
    tokens: TokenChoice,
) -> Factors:
    batch = AnswerRows.make(llm, questions, answer_end=answer_end)
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # Nothing below the first projection takes a gradient, so the graph begins there.
        traced = output if output.requires_grad else output.detach().requires_grad_()
        seen[module] = (args[0].detach(), traced)
        return traced

    with torch.enable_grad(), contextlib.ExitStack() as stack:
        for projection in projections:
            stack.enter_context(hooked(projection, record))
        mask_BA = batch.mask_BA.bool()
        weight_BA = (mask_BA / mask_BA.sum(1, keepdim=True))[mask_BA]
        loss = answer_nll(batch.logits(llm)[mask_BA], batch.answers_BA[mask_BA]) @ weight_BA
    gradients = torch.autograd.grad(loss, [seen[one][1] for one in projections])
    chosen_BT = batch.rows.mask_BT.bool()
    if tokens == "answer":
        width = batch.mask_BA.shape[1]
        chosen_BT = torch.zeros_like(chosen_BT)
        chosen_BT[:, -width - 1 : -1] = batch.mask_BA.bool()
    chosen_BT[:, -1] = False
    return Factors(
        inputs=tuple(seen[one][0][chosen_BT].float() for one in projections),
        gradients=tuple(one[chosen_BT].float() for one in gradients),
        edit_N=first + chosen_BT.nonzero()[:, 0],
    )


@contextlib.contextmanager
def shifted(projections: Sequence[nn.Module], shifts: Sequence[Tensor]) -> Iterator[None]:
    """Projections compute as if their weights were shifted, differentiably in the shifts, as long as the block runs.

    Args:
        projections: whose outputs change.
        shifts: for each projection [G, I, D]. Rows must come a group behind another, equally many each: those of
            group g see W + Sᵀ with its S.
    """

    def add(shift_GID: Tensor) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs = args[0].to(shift_GID.dtype).reshape(len(shift_GID), -1, shift_GID.shape[1])
            return output + (inputs @ shift_GID).reshape(output.shape).to(output.dtype)

        return hook

    with contextlib.ExitStack() as stack:
        for projection, shift_GID in zip(projections, shifts, strict=True):
            stack.enter_context(hooked(projection, add(shift_GID)))
        yield


def ridge_shift(keys_NI: Tensor, values_ND: Tensor, ridge: Tensor | float) -> Tensor:
    """The shift S, float32 [I, D], that minimises Σ ‖k S - v‖² + ridge ‖S‖²: (KᵀK + ridge 1)⁻¹ Kᵀ V.

    Solved in float64, as Kᵀ (KKᵀ + ridge 1)⁻¹ V, which is the same, where there are fewer tokens than inner units.
    """
    keys, values = keys_NI.double(), values_ND.double()
    if len(keys) <= keys.shape[1]:
        return (keys.T @ torch.linalg.solve(_plus(keys @ keys.T, ridge), values)).float()
    return torch.linalg.solve(_plus(keys.T @ keys, ridge), keys.T @ values).float()


def _plus(gram: Tensor, ridge: Tensor | float) -> Tensor:
    return gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
