"""What an editor is to the evaluation: it takes edits, says or changes what the LLM answers, and takes them back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from recipe_ray.eval.cases import Ask
from recipe_ray.eval.protocol import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What a method may see of an edit: nothing that the evaluation asks but the edit's own question.

    Attributes:
        fact_id: its id.
        prompt: its question.
        target: what the edited LLM must say after it.
        subject: whom or what it is about, standing in `prompt`; empty where the data set does not say.
    """

    fact_id: str
    prompt: str
    target: str
    subject: str = ""

    @property
    def statement(self) -> str:
        """The edit as a sentence without its full stop."""
        return f"{self.prompt} {self.target}"


class Method(Protocol):
    """An editor under evaluation.

    Attributes:
        name: in tables.
        changes_llm: whether answers depend on the edits in force beyond what `asks` says, so that they must be made
            before `undo`. A method that acts on what a frozen LLM reads says False, and its asks are answered in
            large batches.
    """

    name: str
    changes_llm: bool

    @property
    def reader(self) -> Reader:
        """The LLM as it answers with the edits in force."""

    def apply(self, edits: Sequence[Edit]) -> None:
        """Add edits to those in force.

        One call is one batch: a method that can edit many facts at once does, one that cannot takes them one by one.
        Lifelong editing is a call an edit. Two edits of one fact_id: the later counts.

        Raises:
            EditorError: the edit cannot be made by this method (for instance it needs a subject and there is none).
        """

    def undo(self) -> None:
        """Take back all edits: the LLM's weights and answers are what they were, to the bit."""

    def asks(self, prompts: Sequence[str]) -> list[Ask]:
        """What the LLM reads for each prompt with the edits in force; the prompt alone is the query."""

    def state_bytes(self) -> int:
        """What the edits in force keep beyond the unedited LLM: changed weights count, copies for `undo` do not."""


class ReadsAsGiven:
    """A method whose LLM reads every question as it is: what was edited is in the LLM."""

    def asks(self, prompts: Sequence[str]) -> list[Ask]:
        """The prompts alone."""
        return [Ask(prompt) for prompt in prompts]

    def chat_asks(self, chats: Sequence[Ask]) -> list[Ask]:
        """The chats as they are."""
        return list(chats)


def latest(edits: Sequence[Edit]) -> list[Edit]:
    """The edits without those that a later one of the same fact replaces, in the order of what is left."""
    last = {edit.fact_id: place for place, edit in enumerate(edits)}
    return [edit for place, edit in enumerate(edits) if last[edit.fact_id] == place]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a method that retrieves found for B prompts.

    Attributes:
        fact_ids_B: of the nearest fact, whether applied or not; None where no edit is in force.
        applied_B: bool, whether it is applied.
        score_B: float32, of the nearest fact; -inf where there is none.
        threshold_B: float32, what a score must exceed for its fact to be applied.
    """

    fact_ids_B: tuple[str | None, ...]
    applied_B: npt.NDArray[np.bool_]
    score_B: npt.NDArray[np.float32]
    threshold_B: npt.NDArray[np.float32]


@runtime_checkable
class ReadsChats(Protocol):
    """A method that takes questions in chats."""

    def chat_asks(self, chats: Sequence[Ask]) -> list[Ask]:
        """What the LLM reads for each chat with the edits in force; the last message alone (`text`) is the query.

        Args:
            chats: as the unedited LLM reads them.
        """


@runtime_checkable
class Retrieves(Protocol):
    """A method that looks an edit up for each prompt, so that retrieval is measured apart from generation."""

    def retrieve(self, prompts: Sequence[str]) -> Found:
        """What each prompt finds among the edits in force; the prompt alone is the query."""
