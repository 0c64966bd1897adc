"""Editors that look one edit up for each question and put something of it before the question.

What is looked up by is one choice (`Encoding`), what is put before the question another: the edit's continuous prompt,
or the words of its statement.

Shape letters: B prompts, F facts, K key width, P virtual tokens, D LLM width.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from recipe_ray.config import ChatPosition, PromptPosition
from recipe_ray.eval.cases import Ask
from recipe_ray.eval.methods.base import Edit, Found
from recipe_ray.eval.methods.held import HeldFacts
from recipe_ray.eval.protocol import STOP, Reader
from recipe_ray.model.editor import Editor
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.retrieval import NO_FACT, Retrieval, decide
from recipe_ray.store.indexes.exact import inner_products

Vectors = npt.NDArray[np.float32]
# Of 40 tuning edits SmolLM2-135M-Instruct said 0.65 plainly asked and 0.63 in conversations; without these words 0.63
# and 0.50, in a line with the question 0.65 and 0.50, as a system prompt 0.60 and 0.43, with them there 0.58 and 0.45.
PASTED_IN_CHAT = "Answer by this fact: "
EncodeFacts = Callable[[Sequence[str]], tuple[Vectors, Vectors]]
Encode = Callable[[Sequence[str]], Vectors]


class Encoding(Protocol):
    """What texts become to be looked up."""

    def facts(self, statements: Sequence[str]) -> tuple[Vectors, Vectors]:
        """Keys [F, K] and continuous prompts [F, P, D], P = 0 where there are none."""

    def queries(self, prompts: Sequence[str]) -> Vectors:
        """Queries [B, K]; the score of a fact is the inner product with its key."""

    def thresholds(self, queries_BK: Vectors) -> Vectors:
        """[B], what a score must exceed for its fact to be applied."""


class EditorEncoding:
    """RECIPE's retriever, prompt encoder and Knowledge Sentinel.

    Args:
        editor: a trained editor.
        encode_facts: instead of the editor's own: such as one that gives the vectors that a table holds.
    """

    def __init__(self, editor: Editor, *, encode_facts: EncodeFacts | None = None) -> None:
        self.editor = editor
        self._encode_facts = encode_facts or editor.encode_facts
        # Θ is encoded once, as a server does, and not with every question.
        self._sentinel_K = editor.sentinel_array() if editor.config.num_sentinel_tokens else None

    def facts(self, statements: Sequence[str]) -> tuple[Vectors, Vectors]:
        """As the editor encodes statements."""
        return self._encode_facts(statements)

    def queries(self, prompts: Sequence[str]) -> Vectors:
        """As the editor encodes queries."""
        return self.editor.encode_queries(prompts)

    def thresholds(self, queries_BK: Vectors) -> Vectors:
        """The similarity to Θ, or an ablation's one threshold."""
        if self._sentinel_K is None:
            return self.editor.thresholds(queries_BK)
        return inner_products(queries_BK, self._sentinel_K)


class SentenceEncoding:
    """A sentence encoder that knows nothing of edits, for statements and questions alike.

    Args:
        encode: texts to vectors [B, K]; of unit norm, so that scores are cosines.
        threshold: what a score must exceed; see `choose_threshold`.
    """

    def __init__(self, encode: Encode, *, threshold: float) -> None:
        self._encode = encode
        self.threshold = threshold

    def facts(self, statements: Sequence[str]) -> tuple[Vectors, Vectors]:
        """Vectors of the statements, and no prompts."""
        return self._encode(statements), np.zeros((len(statements), 0, 0), np.float32)

    def queries(self, prompts: Sequence[str]) -> Vectors:
        """Vectors of the prompts."""
        return self._encode(prompts)

    def thresholds(self, queries_BK: Vectors) -> Vectors:
        """The one threshold."""
        return np.full(len(queries_BK), self.threshold, np.float32)


class HoldingMethod(ABC):
    """Holds edits and puts one of them, or none, before each question; which one is a subclass's affair.

    Args:
        llm: the frozen LLM, never changed.
        encoding: what is looked up by.
        name: in tables.
        position: where a continuous prompt stands.
        chat_position: where it stands in a chat.
        pasted: put the words of the statement and STOP before the question, not the continuous prompt.
        beside: another method with the same prompts, whose answers are remembered for both.
    """

    changes_llm = False

    def __init__(
        self,
        llm: FrozenLLM,
        encoding: Encoding,
        *,
        name: str,
        position: PromptPosition = "first",
        chat_position: ChatPosition = "as_text",
        pasted: bool,
        beside: "HoldingMethod | None" = None,
    ) -> None:
        self.name = name
        self.encoding = encoding
        self.pasted = pasted
        self.held = HeldFacts()
        if beside is None:
            self.reader = Reader(llm, np.zeros((0, 0, llm.width), np.float32), position, chat_position)
            self._prompt_rows = _PromptRows(self.reader)
        else:
            self.reader, self._prompt_rows = beside.reader, beside._prompt_rows

    def apply(self, edits: Sequence[Edit]) -> None:
        """Encode the statements in one batch and hold them; nothing else is done for an edit."""
        keys_FK, prompts_FPD = self.encoding.facts([edit.statement for edit in edits])
        self.held.hold(edits, keys_FK)
        if not self.pasted:
            self._prompt_rows.keep([edit.statement for edit in edits], prompts_FPD)

    def undo(self) -> None:
        """Forget all edits."""
        self.held.clear()

    @abstractmethod
    def rows(self, prompts: Sequence[str]) -> list[int]:
        """For each prompt the row of `held` that is applied, NO_FACT for none."""

    def asks(self, prompts: Sequence[str]) -> list[Ask]:
        """Each question behind what was retrieved for it, or alone."""
        return self.chat_asks([Ask(prompt) for prompt in prompts])

    def chat_asks(self, chats: Sequence[Ask]) -> list[Ask]:
        """Likewise; a statement is pasted before the words of the last message, and the LLM told to answer by it."""
        rows = self.rows([ask.text for ask in chats])
        return [
            ask if row == NO_FACT else self.behind(self.held.edits[row], ask)
            for ask, row in zip(chats, rows, strict=True)
        ]

    def behind(self, edit: Edit, ask: Ask) -> Ask:
        """A question behind an edit in force."""
        if not self.pasted:
            return dataclasses.replace(ask, fact=self._prompt_rows.row(edit.statement))
        if not ask.messages:
            return Ask(f"{edit.statement}{STOP} {ask.text}")
        *before, (role, words) = ask.messages
        return dataclasses.replace(
            ask, messages=(*before, (role, f"{PASTED_IN_CHAT}{edit.statement}{STOP}\n\n{words}"))
        )

    def state_bytes(self) -> int:
        """Keys, and prompts (float32, as held here; a table keeps float16) or statements as UTF-8."""
        if self.pasted:
            kept = sum(len(edit.statement.encode()) for edit in self.held.edits)
        else:
            kept = len(self.held.edits) * self._prompt_rows.bytes_each
        return self.held.key_bytes() + kept


class RetrievingMethod(HoldingMethod):
    """Applies the nearest edit where its score exceeds the threshold."""

    def lookup(self, prompts: Sequence[str]) -> Retrieval:
        """What each prompt finds; rows are those of `held`."""
        queries_BK = self.encoding.queries(prompts)
        return decide(*self.held.nearest(queries_BK), self.encoding.thresholds(queries_BK))

    def retrieve(self, prompts: Sequence[str]) -> Found:
        """The same by ids."""
        found = self.lookup(prompts)
        return Found(
            fact_ids_B=tuple(
                None if row == NO_FACT else self.held.edits[row].fact_id for row in found.nearest_B.tolist()
            ),
            applied_B=found.row_B != NO_FACT,
            score_B=found.score_B,
            threshold_B=found.sentinel_B,
        )

    def rows(self, prompts: Sequence[str]) -> list[int]:
        """What is found and applied."""
        rows: list[int] = self.lookup(prompts).row_B.tolist()
        return rows


class OracleMethod(HoldingMethod):
    """Retrieval taken out: each prompt gets the edit that the evaluation says answers it.

    No editor: an upper bound of what a better retriever could give. A prompt that no edit in force answers is read
    alone.

    Args:
        facts: for each prompt the ids of the facts that answer it; see `cases.facts_of_prompts`.
    """

    def __init__(
        self,
        llm: FrozenLLM,
        encoding: Encoding,
        facts: Mapping[str, Sequence[str]],
        *,
        name: str,
        position: PromptPosition = "first",
        chat_position: ChatPosition = "as_text",
        pasted: bool,
        beside: HoldingMethod | None = None,
    ) -> None:
        super().__init__(
            llm,
            encoding,
            name=name,
            position=position,
            chat_position=chat_position,
            pasted=pasted,
            beside=beside,
        )
        self._facts = facts

    def rows(self, prompts: Sequence[str]) -> list[int]:
        """The rows of the right facts."""
        held = [[self.held.row(fact_id) for fact_id in self._facts.get(prompt, ())] for prompt in prompts]
        return [next((row for row in rows if row is not None), NO_FACT) for rows in held]


class _PromptRows:
    """Continuous prompts in a reader, by statement: a row once given stays, so asks of undone edits stay readable."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._row_of: dict[str, int] = {}
        self._buffer = reader.prompts_NPD

    @property
    def bytes_each(self) -> int:
        """Of one prompt."""
        _, num_virtual, width = self._buffer.shape
        return num_virtual * width * self._buffer.itemsize

    def keep(self, statements: Sequence[str], prompts_FPD: Vectors) -> None:
        """Add the prompts of statements that have none yet."""
        new = [place for place, one in enumerate(statements) if one not in self._row_of]
        first = {statements[place]: place for place in reversed(new)}
        start, end = len(self._row_of), len(self._row_of) + len(first)
        if end > len(self._buffer):  # doubled, so that edits one by one copy each prompt a few times, not each time
            grown = np.empty((max(end, 2 * len(self._buffer)), *prompts_FPD.shape[1:]), np.float32)
            if start:
                grown[:start] = self._buffer[:start]
            self._buffer = grown
        self._buffer[start:end] = prompts_FPD[sorted(first.values())]
        for place in sorted(first.values()):
            self._row_of[statements[place]] = len(self._row_of)
        self._reader.prompts_NPD = self._buffer[:end]

    def row(self, statement: str) -> int:
        """Of a statement that was kept."""
        return self._row_of[statement]
