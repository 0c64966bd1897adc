"""What the parts of the application say to each other: plain values, no torch, no Ray.

Shapes: P virtual tokens of all applied facts together, D LLM width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from recipe_ray.facts import Fact

Declined = Literal[
    "edits_off",  # the request asked for the unedited LLM
    "echo",  # the request holds its own answer, and gave no query
    "no_query",  # token ids, a chat without a user's words, or a text of which nothing is to be seen, and no query
    "empty_table",
    "empty_namespace",
    "below_sentinel",
    "shard_lost",  # a part of the index did not answer, and the policy is to go on unedited
]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """A question to the retriever: `query` is the words of the prompt, never of an answer.

    Attributes:
        query: to encode.
        namespace: whose facts.
        top_k: at most so many facts, all above the sentinel, best first.
        snapshot: version to answer from; None for the current one.
        min_snapshot: wait until the current version is at least this one (read your writes).
    """

    query: str
    namespace: str
    top_k: int = 1
    snapshot: int | None = None
    min_snapshot: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedFact:
    """A fact that fired.

    Attributes:
        fact_id, statement, source: as in the table.
        score: similarity of query and fact.
        prompt_PD: its continuous prompt, as stored.
    """

    fact_id: str
    statement: str
    source: str
    score: float
    prompt_PD: npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The retriever's answer.

    Attributes:
        snapshot: version that it comes from, the same on all shards.
        facts: to apply, best first; empty where none is.
        declined: why none; None where a fact is applied.
        score: similarity of the query and its best fact, applied or not; None where there was none to compare with.
        sentinel_score: similarity of query and sentinel, which a fact must exceed; None where nothing was looked up.
    """

    snapshot: int
    facts: tuple[AppliedFact, ...]
    declined: Declined | None
    score: float | None
    sentinel_score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to decode.

    Attributes:
        max_tokens: None for a default, which shrinks to what the context leaves. 0 only with echo.
        temperature: 0 is greedy.
        top_p: smallest set of tokens with this much probability is sampled from; 1 for all.
        seed: of the sampling; None for a random one.
        stop: texts before which the answer ends.
        logprobs: how many alternatives to tell beside each token, 0 for the token's own alone; None for none.
        echo: begin the answer with the prompt (and its log-probabilities).
        ignore_eos: go on to `max_tokens` where the LLM would end the text: for measuring.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a chat; `role` is system, user, assistant, or what else the LLM's chat template knows."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What an engine is asked.

    Attributes:
        request_id: for logs.
        prompt: a text, token ids, or a chat that the LLM's template makes a prompt of.
        virtual_PD: continuous prompts of the facts to apply, one behind the other; None for the unedited LLM.
        sampling: how to decode.
    """

    request_id: str
    prompt: str | tuple[int, ...] | tuple[ChatMessage, ...]
    virtual_PD: npt.NDArray[np.floating[Any]] | None
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """One token of an answer (or of an echoed prompt).

    Attributes:
        token: its text.
        offset: where that begins in the answer's whole text, in characters; each part of a character is where that
            character is, and a token that adds nothing where it would be.
        logprob: natural logarithm of its probability; None for the first of an echoed prompt.
        top: the most probable tokens there, most probable first, with theirs.
    """

    token: str
    offset: int
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of a streamed answer; `finish_reason` is of the last alone. Virtual tokens are not counted.

    Attributes:
        text: new text; text that may be the beginning of a stop text is held back.
        logprobs: of the tokens that the text is made of, where asked for.
        num_prompt_tokens, num_new_tokens: so far.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer; see Chunk."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a part does not take a request: a fault of the request, in words for its sender.

    Attributes:
        message: what is wrong and what to do.
        code: for programs.
        param: the field at fault, by the HTTP interface's name.
        status: of the HTTP answer.
    """

    message: str
    code: str
    param: str | None = None
    status: int = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFact:
    """A live fact as the table tells it."""

    fact_id: str
    namespace: str
    statement: str
    prompt: str
    target: str
    subject: str
    source: str
    updated_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredFact:
    """A fact that a search found, with its similarity to the query."""

    fact: StoredFact
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Facts nearest to a query, best first, and the sentinel's score, above which they would be applied."""

    snapshot: int
    facts: tuple[ScoredFact, ...]
    sentinel_score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FactPage:
    """Some live facts of a namespace in the order of their ids; `next_id` continues, None where there are no more."""

    snapshot: int
    facts: tuple[StoredFact, ...]
    next_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FactLookup:
    """One fact by id; None where it is not live."""

    snapshot: int
    fact: StoredFact | None


Outcome = Literal["new", "changed", "unchanged", "superseded", "deleted", "absent", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """What became of written facts; all of it is durable.

    Attributes:
        snapshot: the version that tells them; give it as `min_snapshot` to read your writes.
        outcomes: by fact, in the order given. `superseded`: the table holds a later event of that id. `absent`: there
            was nothing to delete. `expired`: it is kept, and no longer true.
        fact_ids: likewise, under which the table has them: a fact that was given no id may be there under an older one.
    """

    snapshot: int
    outcomes: tuple[Outcome, ...]
    fact_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """One version of the table.

    Attributes:
        version: the newest one is what is served.
        committed_at: in UTC.
        operation: ingest, put, delete, rollback, compact, …, as the log calls it.
        counts: what the commit counted, such as new, changed and deleted.
    """

    version: int
    committed_at: datetime
    operation: str
    counts: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """How a model's facts stand.

    Attributes:
        snapshot: version served.
        committed_at: when it was committed, in UTC.
        num_facts: live facts by namespace.
        index_bytes: of keys and indexes held.
        writable: whether facts can be put (not where a version is pinned).
    """

    snapshot: int
    committed_at: datetime
    num_facts: dict[str, int]
    index_bytes: int
    writable: bool


Write = Sequence[Fact]
"""Facts to put; deletes are facts whose op is `delete`."""
