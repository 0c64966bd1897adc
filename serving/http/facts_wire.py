"""Facts and snapshots on the wire."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from recipe_ray.errors import FactError
from recipe_ray.facts import FIELDS, Fact, fact_from_record
from serving.errors import ApiError
from serving.http.wire import Version, Wire, Words, fault
from serving.messages import Declined, Finding, Outcome, ScoredFact, SnapshotInfo, StoredFact

MAX_PAGE = 1000
MAX_FOUND = 100
MAX_TOP_K = 16

_TEXTS = {name: {"type": ["string", "null"]} for name in FIELDS if name not in ("id", "op")}
_RECORD_SCHEMA = {
    "type": "object",
    "description": "A fact as in a dump: `prompt` and `target`, or `statement`; a delete has `id`, or `prompt`.",
    "properties": {
        "id": {"type": ["string", "integer", "null"]},
        **_TEXTS,
        "op": {"enum": ["upsert", "delete", "", None]},
    },
    "additionalProperties": False,
}
Record = Annotated[Any, WithJsonSchema(_RECORD_SCHEMA)]
"""Checked by `recipe_ray.facts.fact_from_record`, as the lines of dumps are."""


def deletion(fact_id: str, namespace: str, *, param: str) -> Fact:
    """The event that deletes a fact, checked as any event is; it also spells namespace and id as the table does.

    Raises:
        ApiError: 400, no fact can have them.
    """
    try:
        return fact_from_record({"id": fact_id, "namespace": namespace, "op": "delete"}, place=param)
    except FactError as error:
        raise ApiError(400, str(error), param=param, code="invalid_value") from error


class ModelQuery(BaseModel):
    """Which model."""

    model_config = ConfigDict(extra="forbid")

    model: Words | None = None


class NamespaceQuery(ModelQuery):
    """Which model, and whose facts."""

    namespace: Words | None = None


class FactQuery(NamespaceQuery):
    """Of one fact that is read."""

    min_snapshot: Version | None = None


class ListQuery(FactQuery):
    """Of a listing."""

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    cursor: str | None = None


class StatusQuery(ModelQuery):
    """Of what is served now."""

    min_snapshot: Version | None = None


class SnapshotsQuery(StatusQuery):
    """Of a listing of versions."""

    limit: int = Field(default=20, ge=1, le=MAX_PAGE)


class PutBody(Wire):
    """Facts to put; `namespace` is of those that name none."""

    facts: list[Record] = Field(min_length=1)
    namespace: Words | None = None
    model: Words | None = None


class DeleteBody(Wire):
    """Facts to delete."""

    ids: list[Words] = Field(min_length=1)
    namespace: Words | None = None
    model: Words | None = None


class SearchBody(Wire):
    """Facts to find by likeness to a text."""

    query: Words
    namespace: Words | None = None
    limit: int = Field(default=10, ge=1, le=MAX_FOUND)
    min_snapshot: Version | None = None
    model: Words | None = None


class RetrieveBody(Wire):
    """Queries to look up as a completion would, with no completion."""

    query: Words | None = None
    queries: list[Words] | None = Field(default=None, min_length=1)
    namespace: Words | None = None
    top_k: int = Field(default=1, ge=1, le=MAX_TOP_K)
    snapshot: Version | None = None
    min_snapshot: Version | None = None
    model: Words | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.query is None) == (self.queries is None):
            raise fault("query", "and 'queries' are one or the other; give one of them")
        if self.snapshot is not None and (self.min_snapshot or 0) > self.snapshot:
            raise fault(
                "min_snapshot", f"is {self.min_snapshot}, after 'snapshot' of {self.snapshot}; give one of them"
            )
        return self

    @property
    def texts(self) -> list[str]:
        """The queries, one or more."""
        return [self.query] if self.query is not None else self.queries or []


class FactBody(BaseModel):
    """A live fact; times in UTC."""

    id: str
    namespace: str
    statement: str
    prompt: str
    target: str
    subject: str
    source: str
    updated_at: datetime
    expires_at: datetime | None


class ScoredFactBody(FactBody):
    """A fact that a search found."""

    score: float


class OutcomeBody(BaseModel):
    """What became of a fact."""

    id: str
    outcome: Outcome


class WriteAnswer(BaseModel):
    """What became of facts; give `snapshot` as `min_snapshot` to read your writes."""

    snapshot: int
    facts: list[OutcomeBody]


class DeleteAnswer(BaseModel):
    """What became of a fact."""

    snapshot: int
    outcome: Outcome


class FactAnswer(BaseModel):
    """One fact."""

    snapshot: int
    fact: FactBody


class ListAnswer(BaseModel):
    """Facts in the order of their ids; `next_cursor` continues, null where there are no more."""

    snapshot: int
    facts: list[FactBody]
    next_cursor: str | None


class SearchAnswer(BaseModel):
    """Facts nearest to the query, best first; those above `sentinel_score` would be applied."""

    snapshot: int
    sentinel_score: float
    facts: list[ScoredFactBody]


class AppliedBody(BaseModel):
    """A fact that would be applied."""

    id: str
    statement: str
    source: str
    score: float


class FindingBody(BaseModel):
    """What a query found: facts that would be applied, or the reason why none; margin is score less sentinel's."""

    facts: list[AppliedBody]
    reason: Declined | None
    score: float | None
    sentinel_score: float | None
    margin: float | None


class RetrieveAnswer(BaseModel):
    """A finding for each query."""

    snapshot: int
    findings: list[FindingBody]


class SnapshotBody(BaseModel):
    """A version of the table; `counts` are over all namespaces, and null for keys that do not see all."""

    version: int
    committed_at: datetime
    operation: str
    counts: dict[str, int] | None


class SnapshotsAnswer(BaseModel):
    """Versions, newest first."""

    snapshots: list[SnapshotBody]


class StatusAnswer(BaseModel):
    """What is served; facts of the namespaces that the key sees, `index_bytes` null where those are not all."""

    model: str
    snapshot: int
    committed_at: datetime
    num_facts: dict[str, int]
    index_bytes: int | None
    writable: bool


def fact_body(fact: StoredFact) -> FactBody:
    """A fact for the wire."""
    return FactBody(**_values(fact))


def scored_body(found: ScoredFact) -> ScoredFactBody:
    """A found fact for the wire."""
    return ScoredFactBody(**_values(found.fact), score=found.score)


def finding_body(finding: Finding) -> FindingBody:
    """A finding for the wire."""
    scores = finding.score, finding.sentinel_score
    return FindingBody(
        facts=[
            AppliedBody(id=fact.fact_id, statement=fact.statement, source=fact.source, score=fact.score)
            for fact in finding.facts
        ],
        reason=finding.declined,
        score=finding.score,
        sentinel_score=finding.sentinel_score,
        margin=None if scores[0] is None or scores[1] is None else scores[0] - scores[1],
    )


def snapshot_body(info: SnapshotInfo, *, with_counts: bool) -> SnapshotBody:
    """A version for the wire."""
    return SnapshotBody(
        version=info.version,
        committed_at=info.committed_at,
        operation=info.operation,
        counts=info.counts if with_counts else None,
    )


def _values(fact: StoredFact) -> dict[str, Any]:
    return {
        "id": fact.fact_id,
        "namespace": fact.namespace,
        "statement": fact.statement,
        "prompt": fact.prompt,
        "target": fact.target,
        "subject": fact.subject,
        "source": fact.source,
        "updated_at": fact.updated_at,
        "expires_at": fact.expires_at,
    }
