"""Rows for a causal LM: token ids, left-padded, with room for a continuous prompt.

Shape letters: B rows, T padded length, P virtual tokens, D LLM width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recipe_ray.config import PromptPosition


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedRows:
    """Rows of different length, aligned at their ends, so that the last tokens of all rows share their columns.

    Attributes:
        ids_BT: int64 token ids; 0 in padding and in the slots of virtual tokens.
        mask_BT: int64, 1 where a token or a virtual token stands.
        prefixed_R: int64, the R ≤ B rows that carry a continuous prompt.
        slots_RP: int64, the columns of those rows' virtual tokens.
    """

    ids_BT: Tensor
    mask_BT: Tensor
    prefixed_R: Tensor
    slots_RP: Tensor

    @property
    def position_ids_BT(self) -> Tensor:
        """Positions that count from each row's first token, so that a padded row gives what a single one gives."""
        return (self.mask_BT.cumsum(-1) - 1).clamp(min=0)

    def embed(self, embedding: nn.Module, prompts_RPD: Tensor | None) -> Tensor:
        """Input embeddings [B, T, D] by the LLM's own module (which may scale them), prompts in their slots."""
        embeds_BTD: Tensor = embedding(self.ids_BT)
        if prompts_RPD is None or len(self.prefixed_R) == 0:
            return embeds_BTD
        index = (self.prefixed_R[:, None].expand_as(self.slots_RP), self.slots_RP)
        return embeds_BTD.index_put(index, prompts_RPD.to(embeds_BTD.dtype))


def start_in_text(token_ids: Sequence[int], position: PromptPosition, bos_token_id: int | None) -> int:
    """Tokens of a text before its continuous prompt: `after_bos` in a text without BOS means first."""
    if position == "last":
        return len(token_ids)
    return int(position == "after_bos" and bool(token_ids) and token_ids[0] == bos_token_id)


def pad_rows(
    token_ids: Sequence[Sequence[int]],
    *,
    num_virtual_tokens: Sequence[int],
    starts: Sequence[int],
    device: torch.device,
    multiple_of: int = 1,
) -> PaddedRows:
    """Lay out rows of token ids.

    Args:
        token_ids: one list a row, BOS included where the tokenizer adds one.
        num_virtual_tokens: per row, P or 0 (no prompt); all rows with a prompt share one P.
        starts: per row, tokens before its virtual tokens.
        device: of the rows.
        multiple_of: rows are padded to a multiple of so many columns.
    """
    lengths = [len(ids) + num for ids, num in zip(token_ids, num_virtual_tokens, strict=True)]
    width = math.ceil(max(lengths) / multiple_of) * multiple_of
    ids_BT = torch.zeros(len(lengths), width, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    prefixed, slots = [], []
    for row, (ids, num, lead, length) in enumerate(zip(token_ids, num_virtual_tokens, starts, lengths, strict=True)):
        start = width - length
        mask_BT[row, start:] = 1
        ids_BT[row, start : start + lead] = torch.tensor(ids[:lead], dtype=torch.long)
        ids_BT[row, start + lead + num :] = torch.tensor(ids[lead:], dtype=torch.long)
        if num:
            prefixed.append(row)
            slots.append(range(start + lead, start + lead + num))
    return PaddedRows(
        ids_BT=ids_BT.to(device),
        mask_BT=mask_BT.to(device),
        prefixed_R=torch.tensor(prefixed, dtype=torch.long, device=device),
        slots_RP=torch.tensor([list(slot) for slot in slots], dtype=torch.long, device=device),
    )
