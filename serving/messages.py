"""What the parts of the application say to each other: plain values, no torch, no Ray.

Shapes: P virtual tokens, D LLM width.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from recipe_ray.config import PromptPosition

Declined = Literal["edits_off", "empty_table", "empty_namespace", "below_sentinel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """A question to the retriever: `query` is the words of the prompt, never of an answer."""

    query: str
    namespace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """The fact to apply.

    Attributes:
        fact_id, statement, source: as in the table.
        prompt_PD: the continuous prompt, as stored.
        position: where the editor was trained to put it.
    """

    fact_id: str
    statement: str
    source: str
    prompt_PD: npt.NDArray[np.floating[Any]]
    position: PromptPosition


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The retriever's answer.

    Attributes:
        edit: None where no fact is to be applied.
        declined: why, None where a fact is applied.
        score: similarity of the query and its best fact, applied or not; None where there was none to compare with.
        sentinel_score: similarity of query and sentinel, the least that a fact must exceed; None where not looked up.
    """

    edit: Edit | None
    declined: Declined | None
    score: float | None
    sentinel_score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt to complete.

    Attributes:
        max_tokens: None for the default, which shrinks to what the context leaves.
        stop: texts before which the answer ends.
    """

    text: str
    edit: Edit | None
    max_tokens: int | None
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the LLM gave; the virtual tokens of an edit are not counted."""

    text: str
    finish_reason: Literal["stop", "length"]
    num_prompt_tokens: int
    num_new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why the engine does not take a prompt: a fault of the request, in words for its sender."""

    message: str
    code: Literal["context_length_exceeded", "empty_prompt"]
