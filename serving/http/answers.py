"""OpenAI's answers as they go over the wire, and our `recipe` in each choice."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from serving.messages import AppliedFact, Declined, Finding, FinishReason, TokenLogprob

_LEAST_LOGPROB = -9999.0  # OpenAI's word for "most unlikely": JSON has no minus infinity
_NO_CHARACTER = "\ufffd"  # what a token that is a part of a character is shown as

Found = Finding | Declined
"""What is applied to one prompt; the reason alone where nothing was looked up."""


class FactAnswer(BaseModel):
    """A fact that was applied."""

    id: str
    statement: str
    source: str
    score: float


class RecipeAnswer(BaseModel):
    """What was applied to one choice, and why."""

    snapshot: int | None = Field(description="Version of the table that was looked at; null where none was.")
    edits: bool = Field(description="Whether edits were wanted.")
    facts: list[FactAnswer] = Field(description="Applied, best first.")
    fact: FactAnswer | None = Field(description="The best of them.")
    reason: Declined | None = Field(description="Why none was applied.")
    score: float | None = Field(description="Similarity of the query and its best fact, applied or not.")
    sentinel_score: float | None = Field(description="Similarity of query and sentinel, which a fact must exceed.")


class Usage(BaseModel):
    """Counts of tokens; virtual ones are not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(BaseModel):
    """Of each token of a choice."""

    tokens: list[str]
    token_logprobs: list[float | None] = Field(description="Null for the first token of an echoed prompt.")
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int] = Field(
        description="Where each token's text begins, in characters of the choice's text (in a stream, of its whole "
        "text): of each part of a character, where that is; of what is not in the text, where it would be."
    )


class CompletionChoice(BaseModel):
    """One completion; in a stream, a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    recipe: Annotated[RecipeAnswer | None, Field(description="In a stream, in the first piece of a choice.")] = None


class CompletionAnswer(BaseModel):
    """`text_completion`; in a stream, one of its chunks."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(BaseModel):
    """A token that could have been there."""

    token: str
    logprob: float
    bytes: list[int] | None = Field(description="Null where the token is a part of a character.")


class ChatLogprob(TopLogprob):
    """A token that is there, and those that could have been."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Of each token of a choice."""

    content: list[ChatLogprob]
    refusal: None = None


class ChatMessageAnswer(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer to a chat."""

    index: int
    message: ChatMessageAnswer
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    recipe: RecipeAnswer


class ChatAnswer(BaseModel):
    """`chat.completion`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    """What a chunk adds to the assistant's turn."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """A piece of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    recipe: RecipeAnswer | None = None


class ChatChunk(BaseModel):
    """`chat.completion.chunk`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


def recipe_answer(found: Found) -> RecipeAnswer:
    """What is told of one prompt's facts."""
    if not isinstance(found, Finding):
        return RecipeAnswer(
            snapshot=None,
            edits=found != "edits_off",
            facts=[],
            fact=None,
            reason=found,
            score=None,
            sentinel_score=None,
        )
    facts = [_fact_answer(fact) for fact in found.facts]
    return RecipeAnswer(
        snapshot=found.snapshot,
        edits=True,
        facts=facts,
        fact=facts[0] if facts else None,
        reason=found.declined,
        score=found.score,
        sentinel_score=found.sentinel_score,
    )


def _fact_answer(fact: AppliedFact) -> FactAnswer:
    return FactAnswer(id=fact.fact_id, statement=fact.statement, source=fact.source, score=fact.score)


def usage(num_prompt: int, num_new: int) -> Usage:
    """The counts and their sum."""
    return Usage(prompt_tokens=num_prompt, completion_tokens=num_new, total_tokens=num_prompt + num_new)


def completion_logprobs(tokens: Sequence[TokenLogprob]) -> CompletionLogprobs:
    """Log-probabilities in the manner of completions: a token's own is among the most probable ones."""
    return CompletionLogprobs(
        tokens=[token.token for token in tokens],
        token_logprobs=[None if token.logprob is None else _finite(token.logprob) for token in tokens],
        top_logprobs=[_with_alternatives(token) for token in tokens],
        text_offset=[token.offset for token in tokens],
    )


def _with_alternatives(token: TokenLogprob) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    alternatives: dict[str, float] = {}
    for text, logprob in (*token.top, (token.token, token.logprob)):
        # Tokens can share a text, as parts of characters do: the more probable one comes first and stays.
        alternatives.setdefault(text, _finite(logprob))
    return alternatives


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
    """Log-probabilities in the manner of chats."""
    return ChatLogprobs(
        content=[
            ChatLogprob(
                token=token.token,
                logprob=_LEAST_LOGPROB if token.logprob is None else _finite(token.logprob),
                bytes=_bytes(token.token),
                top_logprobs=[
                    TopLogprob(token=text, logprob=_finite(logprob), bytes=_bytes(text)) for text, logprob in token.top
                ],
            )
            for token in tokens
        ]
    )


def _finite(logprob: float) -> float:
    return max(_LEAST_LOGPROB, logprob)


def _bytes(text: str) -> list[int] | None:
    return None if _NO_CHARACTER in text else list(text.encode())
