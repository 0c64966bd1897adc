"""How an LLM is read: free generation, teacher forcing, and chats.

Free generation: greedy, up to the first full stop (the stopping rule) or MAX_NEW_TOKENS tokens, compared as text;
locality compares with the unedited LLM's own text. Teacher forcing: the share of answer tokens that are the most likely
next token; for locality the answer is what the unedited LLM generates. A chat is read through the LLM's template, and
answered greedily until the LLM ends by itself or MAX_CHAT_TOKENS tokens.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recipe_ray.config import ChatPosition, PromptPosition
from recipe_ray.eval.cases import Ask
from recipe_ray.model.chat import Placed, place_chat, place_text
from recipe_ray.model.llm import FrozenLLM, Generation
from recipe_ray.model.prefix import pad_rows

STOP = "."
MAX_NEW_TOKENS = 24
MAX_CHAT_TOKENS = 32
BATCH_SIZE = 128
CHATS_PER_CPU_BATCH = 32  # all go on until the last has ended, and a CPU gains nothing by more rows

Item = TypeVar("Item")


class Reader:
    """The LLM as it answers asks; an ask that comes again is answered from memory, decoding being greedy.

    A method whose LLM answers differently after `apply` or `undo` clears the memory there. One whose LLM depends on the
    ask overrides `complete` and `answer_logits`, which read one batch.

    Args:
        llm: the frozen LLM.
        prompts_NPD: continuous prompts that asks refer to by row.
        position: where a continuous prompt stands.
        chat_position: where it stands in a chat.
    """

    def __init__(
        self,
        llm: FrozenLLM,
        prompts_NPD: npt.NDArray[np.float32],
        position: PromptPosition,
        chat_position: ChatPosition = "as_text",
    ) -> None:
        self.llm = llm
        self.prompts_NPD = prompts_NPD
        self.position: PromptPosition = position
        self.chat_position: ChatPosition = chat_position
        self._generated: dict[Ask, Generation] = {}
        self._accuracy: dict[tuple[Ask, tuple[int, ...]], float] = {}
        self._plain: Reader | None = None

    def reads_as(self, plain: "Reader") -> None:
        """Take the answers to asks without a continuous prompt from a reader of the same LLM, which may have them."""
        assert plain is not self and plain.llm is self.llm
        self._plain = plain

    def clear(self) -> None:
        """Forget what was answered."""
        self._generated.clear()
        self._accuracy.clear()

    def complete(self, asks: Sequence[Ask], *, max_new_tokens: int, stop: Sequence[str] = ()) -> list[Generation]:
        """Greedy completions in one batch, not remembered; with `answer_logits` all that reads the LLM."""
        return self.llm.generate_placed(
            [self.placed(ask) for ask in asks],
            [None if ask.fact < 0 else self.prompts_NPD[ask.fact] for ask in asks],
            max_new_tokens=max_new_tokens,
            stop=stop,
        )

    def placed(self, ask: Ask) -> Placed:
        """What the LLM reads as token ids, and where a continuous prompt stands."""
        if not ask.messages:
            return place_text(self.llm.tokenizer, ask.text, self.position)
        chat_position: ChatPosition = "as_text" if ask.fact < 0 else self.chat_position
        return place_chat(self.llm.tokenizer, ask.messages, chat_position, self.position)

    def generate(self, asks: Sequence[Ask]) -> list[str]:
        """Greedy answers, of texts up to the full stop."""
        return [one.text.strip() for one in self.generations(asks)]

    def generated_ids(self, asks: Sequence[Ask]) -> list[tuple[int, ...]]:
        """The same as token ids, up to the full stop or the end of the text, with it."""
        return [tuple(one.token_ids) for one in self.generations(asks)]

    def generations(self, asks: Sequence[Ask]) -> list[Generation]:
        """The same with all that is known of them."""
        new = [ask for ask in dict.fromkeys(asks) if ask not in self._generated]
        if self._plain is not None:
            plain = [ask for ask in new if ask.fact < 0]
            self._generated.update(zip(plain, self._plain.generations(plain), strict=True))
            new = [ask for ask in new if ask.fact >= 0]
        for batch in _batches([ask for ask in new if not ask.messages]):
            generations = self.complete(batch, max_new_tokens=MAX_NEW_TOKENS, stop=[STOP])
            self._generated.update(zip(batch, generations, strict=True))
        for batch in self._batches_of_chats([ask for ask in new if ask.messages]):
            generations = self.complete(batch, max_new_tokens=MAX_CHAT_TOKENS)
            self._generated.update(zip(batch, generations, strict=True))
        return [self._generated[ask] for ask in asks]

    def _batches_of_chats(self, asks: Sequence[Ask]) -> Iterator[Sequence[Ask]]:
        """Chats of like length: one behind a long conversation takes many times the tokens of a bare question."""
        num_tokens = [len(self.placed(ask).token_ids) for ask in asks]
        order = sorted(range(len(asks)), key=lambda place: -num_tokens[place])
        size = CHATS_PER_CPU_BATCH if self.llm.device.type == "cpu" else BATCH_SIZE
        return _batches([asks[place] for place in order], size)

    def answer_ids(self, answers: Sequence[str]) -> list[tuple[int, ...]]:
        """Answers as they would continue a question."""
        return [tuple(self.llm.tokenize_answer(f" {answer}")) for answer in answers]

    def token_accuracies(self, asks: Sequence[Ask], answers: Sequence[tuple[int, ...]]) -> list[float]:
        """Per ask the share of the answer's tokens that are most likely, each after the right ones before it."""
        pairs = list(zip(asks, answers, strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._accuracy]
        if self._plain is not None and (plain := [pair for pair in new if pair[0].fact < 0]):
            self._accuracy.update(zip(plain, self._plain.token_accuracies(*zip(*plain, strict=True)), strict=True))
            new = [pair for pair in new if pair[0].fact >= 0]
        for batch in _batches(new):
            self._accuracy.update(zip(batch, self._token_accuracies(batch), strict=True))
        return [self._accuracy[pair] for pair in pairs]

    @torch.inference_mode()
    def answer_logits(self, asks: Sequence[Ask], answers: Sequence[tuple[int, ...]]) -> Tensor:
        """Logits [B, A, V] that predict the answers' tokens, in one batch; a shorter answer's stand at the end of A."""
        placed = [self.placed(ask) for ask in asks]
        rows = pad_rows(
            [[*one.token_ids, *ids] for one, ids in zip(placed, answers, strict=True)],
            num_virtual_tokens=[0 if ask.fact < 0 else self.prompts_NPD.shape[1] for ask in asks],
            starts=[one.start for one in placed],
            device=self.llm.device,
        )
        given = [self.prompts_NPD[ask.fact] for ask in asks if ask.fact >= 0]
        prompts = torch.from_numpy(np.stack(given)).to(self.llm.device) if given else None
        return self.llm.answer_logits(rows, prompts, num_answer_tokens=max(map(len, answers)))

    def _token_accuracies(self, pairs: Sequence[tuple[Ask, tuple[int, ...]]]) -> list[float]:
        asks, answers = zip(*pairs, strict=True)
        best_BA = self.answer_logits(asks, answers).argmax(-1).cpu()
        return [
            (best[len(best) - len(ids) :] == torch.tensor(ids)).float().mean().item()
            for best, ids in zip(best_BA, answers, strict=True)
        ]


def plain_reader(llm: FrozenLLM) -> Reader:
    """An LLM read without continuous prompts."""
    return Reader(llm, np.zeros((0, 0, llm.width), np.float32), "first")


def _batches(items: Sequence[Item], size: int = BATCH_SIZE) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
