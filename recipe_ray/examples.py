"""What the editor learns from: edits with the prompts that must change and the prompts that must not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt and how it goes on: after an edit where the edit answers it, else in the unedited LLM.

    Attributes:
        prompt: what is asked, and looked up.
        target: the answer.
        messages: what the LLM reads in the prompt's place, through its chat template: (role, content), the last one of
            the user; empty where it reads the prompt.
    """

    prompt: str
    target: str
    messages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EditRecord:
    """One edit of a data set, with all that the data set asks about it.

    Attributes:
        prompt: the edit's own question.
        target: what the edited LLM must say after it.
        subject: whom or what the edit is about; empty where the data set does not say.
        true_target: what is true without the edit; empty where the data set does not say.
        name: what complaints call it: its file and record; empty where it comes from none.
        generality: by kind, questions whose answer follows from the edit.
        locality: by kind, questions that the edit leaves alone.
        relation: id of what is said of the subject, as `recipe_ray.datasets.wordings` has it; empty where unknown.
    """

    prompt: str
    target: str
    subject: str = ""
    true_target: str = ""
    name: str = ""
    generality: Mapping[str, tuple[Question, ...]] = field(default_factory=dict)
    locality: Mapping[str, tuple[Question, ...]] = field(default_factory=dict)
    relation: str = ""

    @property
    def statement(self) -> str:
        """The edit as the encoder reads it."""
        return f"{self.prompt} {self.target}"

    @property
    def template(self) -> str:
        """The prompt without its subject: equal for edits of one relation in the same words; empty without subject."""
        return self.prompt.replace(self.subject, "{}") if self.subject else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditExample:
    """One edit of a training batch, with one question of each sort.

    Attributes:
        statement: the edit as the encoder reads it.
        prompt: reliability: the statement's own prompt.
        target: what the edited LLM must say after `prompt`.
        generality_prompt: a question that the edit answers too, as a rule the same one in other words.
        generality_target: what the edited LLM must say after it, as a rule the same as `target`.
        locality_prompt: a question that the edit, and every other edit of its batch, leaves alone.
        locality_target: a continuation over whose positions the unedited LLM's distribution is kept.
        name: as in `EditRecord`.
        messages, generality_messages, locality_messages: as in `Question`.
    """

    statement: str
    prompt: str
    target: str
    generality_prompt: str
    generality_target: str
    locality_prompt: str
    locality_target: str
    name: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    generality_messages: tuple[tuple[str, str], ...] = ()
    locality_messages: tuple[tuple[str, str], ...] = ()


class Batches(Protocol):
    """Training data: batch `number` is the same whoever asks for it, so a resumed training sees what it would have."""

    def batch(self, number: int) -> list[EditExample]:
        """Batch `number`, counted from 0."""
        ...
