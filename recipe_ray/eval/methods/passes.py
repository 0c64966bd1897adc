"""Where prompts end in what an LLM reads: for editors that act by the prompt, and for the training of an edit.

Shape letters: B rows, T columns of a pass, A answer tokens, D LLM width, V vocabulary.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from recipe_ray.eval.cases import Ask
from recipe_ray.eval.methods.answers import answer_ids
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.protocol import Reader
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.model.prefix import PaddedRows

_IGNORED = -100  # what cross_entropy leaves out


class PromptPasses:
    """Follows an LLM's passes: whether one reads prompts or goes on behind them, and where each row's prompt stands.

    A pass onto an empty cache reads prompts. What of its rows is answer is known from `answering`; where nobody says,
    all is prompt, as in the first pass of a generation. Rows are aligned at their ends, as `FrozenLLM` lays them out.

    Attributes:
        reads_prompts: whether the pass under way, or the last one, reads prompts.
        prompt_BT: bool, the prompts' tokens in the pass that read them.
        last_B: int64, the column of each prompt's last token in that pass.
    """

    def __init__(self) -> None:
        self.reads_prompts = True
        self.prompt_BT = torch.zeros(0, 0, dtype=torch.bool)
        self.last_B = torch.zeros(0, dtype=torch.long)
        self._num_answer_tokens: Sequence[int] | None = None

    def follow(self, llm: FrozenLLM) -> RemovableHandle:
        """Follow this LLM's passes until the handle is removed."""
        handle: RemovableHandle = llm.model.register_forward_pre_hook(self._before_pass, with_kwargs=True)
        return handle

    def by_row(self, activations: Tensor) -> Tensor:
        """What a module of the pass under way reads or gives as [B, T, width]; OPT's MLP has rows and tokens in one."""
        return activations.reshape(len(self.last_B), -1, activations.shape[-1])

    @contextlib.contextmanager
    def answering(self, num_answer_tokens: Sequence[int]) -> Iterator[None]:
        """In the passes of this block each row ends with so many tokens of answer."""
        self._num_answer_tokens = num_answer_tokens
        try:
            yield
        finally:
            self._num_answer_tokens = None

    def _before_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        self.reads_prompts = cache is None or cache.get_seq_length() == 0
        if not self.reads_prompts:
            return
        embeds = kwargs.get("inputs_embeds")
        read: Tensor = embeds if embeds is not None else kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        num_rows, width = read.shape[:2]
        mask = kwargs.get("attention_mask")
        mask_BT = torch.ones(num_rows, width, device=read.device) if mask is None else mask
        num_answer_B = torch.tensor(self._num_answer_tokens or [0] * num_rows, device=read.device)
        self.last_B = width - 1 - num_answer_B
        self.prompt_BT = mask_BT.bool() & (torch.arange(width, device=read.device) <= self.last_B[:, None])


class PassesReader(Reader):
    """A reader without continuous prompts that says where the prompt ends where it gives the answer along with it.

    Args:
        llm: the LLM, edited or not.
        passes: whom to say it.
    """

    def __init__(self, llm: FrozenLLM, passes: PromptPasses) -> None:
        super().__init__(llm, np.zeros((0, 0, llm.width), np.float32), "first")
        self._passes = passes

    def answer_logits(self, asks: Sequence[Ask], answers: Sequence[tuple[int, ...]]) -> Tensor:
        """As in `Reader`; only the questions count as prompts."""
        with self._passes.answering([len(ids) for ids in answers]):
            return super().answer_logits(asks, answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRows:
    """Edits as rows to learn from: each prompt with its answer behind it.

    Attributes:
        rows: prompts and answers, aligned at their ends.
        num_answer_tokens: of each row.
        labels_BA: int64, the answers' tokens, aligned at their ends; -100 before them.
    """

    rows: PaddedRows
    num_answer_tokens: tuple[int, ...]
    labels_BA: Tensor

    @classmethod
    def of(cls, llm: FrozenLLM, edits: Sequence[Edit]) -> "EditRows":
        """Rows of B edits."""
        answers = [answer_ids(llm, edit.target) for edit in edits]
        prompts = [llm.tokenize(edit.prompt) for edit in edits]
        width = max(map(len, answers))
        labels = [[_IGNORED] * (width - len(ids)) + ids for ids in answers]
        token_ids = [[*prompt, *ids] for prompt, ids in zip(prompts, answers, strict=True)]
        return cls(
            rows=llm.pad(token_ids, [0] * len(edits), "first"),
            num_answer_tokens=tuple(map(len, answers)),
            labels_BA=torch.tensor(labels, device=llm.device),
        )

    def losses(self, llm: FrozenLLM, passes: PromptPasses) -> Tensor:
        """-log f(answer | prompt) [B], the mean over a row's answer tokens, in float32."""
        with passes.answering(self.num_answer_tokens):
            logits_BAV = llm.answer_logits(self.rows, None, num_answer_tokens=self.labels_BA.shape[1])
        token_losses_BA = nn.functional.cross_entropy(
            logits_BAV.float().transpose(1, 2), self.labels_BA, ignore_index=_IGNORED, reduction="none"
        )
        return token_losses_BA.sum(1) / (self.labels_BA != _IGNORED).sum(1)
