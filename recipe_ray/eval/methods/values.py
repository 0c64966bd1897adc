"""What locate-then-edit methods look for before they change weights: keys, and the values that make the LLM say so.

A key is what the MLP's last projection reads at the last token of the subject, mean over contexts (Meng et al. 2022,
arXiv 2202.05262, equation 3). A value is what must come out there for the target to follow, found by gradient
(equation 4; for MEMIT 2210.07229, equation 16): the shift δ of what a module gives at that token.

Shape letters: N edits, X contexts, R rows (contexts of several edits, and a row on the subject's nature each),
A answer length, D LLM width, I width of the MLP inside, V vocabulary.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipe_ray.eval.methods.answers import answer_ids
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.layers import hooked, inputs_of, last_subject_token
from recipe_ray.eval.protocol import STOP
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.model.prefix import PaddedRows

ROWS_PER_PASS = 256  # where no gradient is taken
_SUBJECT_IS = "{subject} is a"  # the authors' p' of equation 4: what the subject is must not change


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueArgs:
    """How values are looked for.

    Attributes:
        num_steps: of Adam at most (ROME on GPT-J 20, MEMIT 25).
        learning_rate: of Adam (0.5).
        weight_decay: times ‖δ‖ / ‖what the module gave‖² in the loss (authors' code; 0.5).
        kl_factor: times the KL divergence of equation 4 in the loss (0.0625).
        clamp_factor: ‖δ‖ stays below so many times the norm of what the module gave (ROME 4, MEMIT 0.75).
        stop_loss: an edit whose loss is below is done (0.05).
        prefix_lengths: tokens of each prefix, sampled from the LLM, that a context sets before the prompt; the prompt
            alone is always the first context (ROME: ten of 5 and ten of 10 tokens; MEMIT: five of 10).
        target_end: text that the target is trained to end with; the papers' is empty. The evaluation's free generation
            ends at a full stop, and an LLM edited without it may run on.
        batch_size: edits whose values are looked for together, which changes none of them.
    """

    num_steps: int = 20
    learning_rate: float = 0.5
    weight_decay: float = 0.5
    kl_factor: float = 0.0625
    clamp_factor: float = 4.0
    stop_loss: float = 0.05
    prefix_lengths: tuple[int, ...] = field(default=(5,) * 10 + (10,) * 10)
    target_end: str = STOP
    batch_size: int = 1


def sample_prefixes(llm: FrozenLLM, lengths: Sequence[int], *, seed: int = 0) -> tuple[str, ...]:
    """Texts that the LLM itself goes on to from nothing, sampled at temperature 1, each of so many tokens."""
    if not lengths:
        return ()
    generator = torch.Generator().manual_seed(seed)
    start = llm.tokenize("") or [*llm.eos_token_ids, 0][:1]
    ids = [start[:1] for _ in lengths]
    for _ in range(max(lengths)):
        rows = llm.pad([[*row, 0] for row in ids], [0] * len(ids), "first")
        with torch.inference_mode():
            logits_RV = llm.answer_logits(rows, None, num_answer_tokens=1)[:, 0].float().cpu()
        drawn = torch.multinomial(logits_RV.softmax(-1), 1, generator=generator).tolist()
        ids = [row + new for row, new in zip(ids, drawn, strict=True)]
    texts = [
        llm.tokenizer.decode(row[1 : 1 + length], skip_special_tokens=True)
        for row, length in zip(ids, lengths, strict=True)
    ]
    return tuple(f"{text.strip().rstrip('.')}. " for text in texts if text.strip(" ."))


def mean_keys(llm: FrozenLLM, projection: nn.Module, edits: Sequence[Edit], prefixes: Sequence[str]) -> Tensor:
    """Keys k* of edits, float32 [N, I]: what the projection reads at the subject's last token, mean over contexts.

    Raises:
        EditorError: an edit whose subject is empty or does not stand in its prompt.
    """
    ids = [ids[: place + 1] for edit in edits for ids, place in _contexts(llm, edit, prefixes)]
    read = [
        inputs_of(llm, ids[start : start + ROWS_PER_PASS], {0: projection})[0][0][:, -1].float()
        for start in range(0, len(ids), ROWS_PER_PASS)
    ]
    return torch.cat(read).reshape(len(edits), 1 + len(prefixes), -1).mean(1)


@torch.no_grad()  # not inference mode: autograd works on from what this gives
def outputs_at_subject(llm: FrozenLLM, site: nn.Module, edits: Sequence[Edit]) -> Tensor:
    """What a module gives at the subject's last token of each prompt alone, float32 [N, D].

    Raises:
        EditorError: an edit whose subject is empty or does not stand in its prompt.
    """
    ids = [ids[: place + 1] for edit in edits for ids, place in _contexts(llm, edit, ())]
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        found.append(_hidden(output)[:, -1].float())

    with hooked(site, keep):
        for start in range(0, len(ids), ROWS_PER_PASS):
            part = ids[start : start + ROWS_PER_PASS]
            llm.answer_logits(llm.pad(part, [0] * len(part), "first"), None, num_answer_tokens=1)
    return torch.cat(found)


def value_shifts(
    llm: FrozenLLM, site: nn.Module, edits: Sequence[Edit], prefixes: Sequence[str], args: ValueArgs
) -> Tensor:
    """Shifts δ, float32 [N, D]: with δ added to what `site` gives at the subject's last token, the target follows.

    Minimises, an edit at a time but in batches, the mean over contexts of -log P(target) a token, plus
    `kl_factor` times KL(P(· | "{subject} is a") ‖ that of the unedited LLM), plus `weight_decay` ‖δ‖ / ‖h‖², h being
    what `site` gives without δ (equation 4 with the authors' weight decay, as in their code).

    Args:
        llm: the LLM as it is before these edits.
        site: the MLP's projection (ROME) or the decoder layer (MEMIT).
        edits: each with its subject in its prompt.
        prefixes: of contexts, as `sample_prefixes` gives them.
        args: how.

    Raises:
        EditorError: an edit whose subject is empty or does not stand in its prompt.
    """
    rows = [_rows_of(llm, edit, prefixes, args.target_end) for edit in edits]
    shifts = [
        _optimise(llm, site, edits[start : start + args.batch_size], rows[start : start + args.batch_size], args)
        for start in range(0, len(edits), args.batch_size)
    ]
    return torch.cat(shifts)


@dataclass(frozen=True, slots=True)
class _Row:
    """A text's tokens, where its subject ends, and its answer's tokens."""

    ids: list[int]
    place: int
    answer: list[int]


def _contexts(llm: FrozenLLM, edit: Edit, prefixes: Sequence[str]) -> Iterator[tuple[list[int], int]]:
    """Token ids of the prompt alone and behind each prefix, and the place of the subject's last token."""
    last_subject_token(llm, edit.prompt, edit.subject)  # a prefix that holds the subject must not hide that none does
    for prefix in ("", *prefixes):
        text = f"{prefix}{edit.prompt}"
        yield llm.tokenize(text), last_subject_token(llm, text, edit.subject)


def _rows_of(llm: FrozenLLM, edit: Edit, prefixes: Sequence[str], target_end: str) -> list[_Row]:
    """The contexts with the target, then the row on the subject's nature, whose one answer token is a blank."""
    answer = answer_ids(llm, edit.target, target_end)
    nature = _SUBJECT_IS.format(subject=edit.subject)
    return [
        *(_Row(ids, place, answer) for ids, place in _contexts(llm, edit, prefixes)),
        _Row(llm.tokenize(nature), last_subject_token(llm, nature, edit.subject), [0]),
    ]


class _Batch:
    """Rows of some edits, laid out once for several passes."""

    def __init__(self, llm: FrozenLLM, rows: Sequence[Sequence[_Row]]) -> None:
        self.llm = llm
        flat = [row for of_edit in rows for row in of_edit]
        self.width = max(len(row.answer) for row in flat)
        padded: PaddedRows = llm.pad([row.ids + row.answer for row in flat], [0] * len(flat), "first")
        self.padded = padded
        columns = padded.ids_BT.shape[1]
        device = llm.device
        self.places_R = torch.tensor(
            [columns - len(row.ids) - len(row.answer) + row.place for row in flat], device=device
        )
        self.edit_R = torch.tensor([number for number, of_edit in enumerate(rows) for _ in of_edit], device=device)
        self.nature_N = torch.tensor([len(of_edit) for of_edit in rows], device=device).cumsum(0) - 1
        self.context_R = torch.ones(len(flat), dtype=torch.bool, device=device)
        self.context_R[self.nature_N] = False
        lengths_R = torch.tensor([len(row.answer) for row in flat], device=device)
        self.answer_mask_RA = torch.arange(self.width, device=device) >= self.width - lengths_R[:, None]
        self.answers_RA = padded.ids_BT[:, -self.width :]

    def logits(self) -> Tensor:
        """Float32 [R, A, V] before the answers' tokens, answers aligned at their ends."""
        return self.llm.answer_logits(self.padded, None, num_answer_tokens=self.width).float()

    def adding(self, site: nn.Module, shifts_ND: Tensor) -> contextlib.AbstractContextManager[None]:
        """For as long as the block runs, each row's shift is added to what `site` gives where its subject ends."""
        index = (torch.arange(len(self.places_R), device=self.places_R.device), self.places_R)
        shifts_RD = shifts_ND[self.edit_R]

        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            hidden = _hidden(output)
            shifted = hidden.index_put(index, shifts_RD.to(hidden.dtype), accumulate=True)
            return (shifted, *output[1:]) if isinstance(output, tuple) else shifted

        return hooked(site, hook)

    def nll_N(self, logits_RAV: Tensor, num_edits: int) -> Tensor:
        """Per edit the mean over its contexts of the mean over the target's tokens of -log P."""
        context = self.context_R
        nll_CA = functional.cross_entropy(
            logits_RAV[context].flatten(0, 1), self.answers_RA[context].flatten(), reduction="none"
        ).view(-1, self.width)
        mask_CA = self.answer_mask_RA[context]
        nll_C = (nll_CA * mask_CA).sum(1) / mask_CA.sum(1)
        total_N = nll_C.new_zeros(num_edits).index_add(0, self.edit_R[context], nll_C)
        return total_N / torch.bincount(self.edit_R[context], minlength=num_edits)


def _optimise(
    llm: FrozenLLM, site: nn.Module, edits: Sequence[Edit], rows: Sequence[list[_Row]], args: ValueArgs
) -> Tensor:
    norms_N = outputs_at_subject(llm, site, edits).norm(dim=-1)
    active = list(range(len(edits)))
    batch = _Batch(llm, rows)
    with torch.no_grad():
        nature_NV = batch.logits()[batch.nature_N, -1].log_softmax(-1)
    shifts_ND = torch.zeros(len(edits), llm.width, device=llm.device, requires_grad=True)
    optimizer = torch.optim.Adam([shifts_ND], lr=args.learning_rate)
    for _ in range(args.num_steps):
        own_ND = shifts_ND[active]
        with batch.adding(site, own_ND):
            logits_RAV = batch.logits()
        now_NV = logits_RAV[batch.nature_N, -1].log_softmax(-1)
        kl_N = functional.kl_div(nature_NV[active], now_NV, log_target=True, reduction="none").sum(-1)
        decay_N = own_ND.norm(dim=-1) / norms_N[active] ** 2
        loss_N = batch.nll_N(logits_RAV, len(active)) + args.kl_factor * kl_N + args.weight_decay * decay_N
        ahead_N = loss_N.detach() >= args.stop_loss
        if not ahead_N.any():
            break
        optimizer.zero_grad()
        loss_N[ahead_N].sum().backward()
        before_ND = shifts_ND.detach().clone()
        optimizer.step()
        if not ahead_N.all():
            active = [number for number, ahead in zip(active, ahead_N.tolist(), strict=True) if ahead]
            batch = _Batch(llm, [rows[number] for number in active])
        with torch.no_grad():
            moved_ND = before_ND.clone()  # Adam's momentum goes on where an edit is done
            moved_ND[active] = shifts_ND[active]
            limit_N = args.clamp_factor * norms_N
            scale_N = (limit_N / moved_ND.norm(dim=-1).clamp(min=1e-12)).clamp(max=1)
            shifts_ND.copy_(moved_ND * scale_N[:, None])
    return shifts_ND.detach()


def _hidden(output: Any) -> Tensor:
    """The hidden states among what a module gives."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
