"""The routes that the page calls, over facts in memory; a fact fires when it shares enough words with the question."""

import asyncio
import copy
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict

from serving.console.router import router
from serving.errors import ApiError

START = datetime(2026, 1, 1, 9, tzinfo=UTC)
SENTINEL_SCORE = 0.5
UNEDITED = "a city that I do not know."
MODEL = "fake-lm"
KEY = "rr_sesame"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")  # as the true interface: no field that it does not know

    model: str | None = None


class Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid")

    edits: bool = True
    namespace: str | None = None
    min_snapshot: int | None = None


class CompletionBody(Body):
    prompt: str
    max_tokens: int
    temperature: float
    stream: bool
    recipe: Recipe


class FactBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str | None = None
    prompt: str
    target: str
    source: str = ""


class PutBody(Body):
    namespace: str | None = None
    facts: list[FactBody]


class SearchBody(Body):
    namespace: str | None = None
    query: str
    limit: int = 10
    min_snapshot: int | None = None


class DeleteBody(Body):
    namespace: str | None = None
    ids: list[str]


@dataclass
class FakeApi:
    """All versions of the facts; tests read and set these fields."""

    key: str | None = None
    writable: bool = True
    late: bool = False  # a read that asks for no version sees the one before the newest
    sees_all: bool = True  # the key sees all namespaces
    delay_s: float = 0.0
    broken: bool = False  # a stream ends with an error event
    versions: list[dict] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    streams_closed: int = 0

    def __post_init__(self):
        self.commit("create", {}, {})

    @property
    def facts(self):
        return self.versions[-1]["facts"]

    @property
    def snapshot(self):
        return len(self.versions) - 1

    def commit(self, operation, facts, counts):
        at = START + timedelta(minutes=len(self.versions))
        info = {"version": len(self.versions), "committed_at": at.isoformat(), "operation": operation, "counts": counts}
        self.versions.append({"info": info, "facts": facts})

    def put(self, namespace, facts):
        live, outcomes = copy.deepcopy(self.facts), []
        for fact in facts:
            fact_id = fact.id or f"fact-{sum(map(len, live.values())) + 1}"
            here = live.setdefault(namespace, {})
            outcomes.append({"id": fact_id, "outcome": "changed" if fact_id in here else "new"})
            here[fact_id] = {
                "id": fact_id,
                "namespace": namespace,
                "statement": f"{fact.prompt} {fact.target}",
                "prompt": fact.prompt,
                "target": fact.target,
                "subject": "",
                "source": fact.source,
                "updated_at": START.isoformat(),
                "expires_at": None,
            }
        self.commit("put", live, {"new": len(facts)})
        return outcomes

    def delete(self, namespace, fact_ids):
        live = copy.deepcopy(self.facts)
        missing = [fact_id for fact_id in fact_ids if live.get(namespace, {}).pop(fact_id, None) is None]
        if missing:
            raise ApiError(404, f"no fact {missing[0]!r} in namespace {namespace!r}", code="fact_not_found")
        self.commit("delete", live, {"deleted": len(fact_ids)})

    def seen(self, min_snapshot):
        return self.snapshot - (1 if self.late and min_snapshot is None and self.snapshot else 0)

    def live(self, namespace, snapshot):
        return self.versions[snapshot]["facts"].get(namespace or "default", {})

    def ranked(self, namespace, query, snapshot):
        facts = self.live(namespace, snapshot).values()
        scored = [{**fact, "score": _similarity(query, fact["prompt"])} for fact in facts]
        return sorted(scored, key=lambda fact: -fact["score"])

    def recipe(self, prompt, asked):
        snapshot = self.seen(asked.min_snapshot)
        nothing = {"snapshot": snapshot, "edits": asked.edits, "facts": [], "fact": None}
        if not asked.edits:
            return {**nothing, "reason": "edits_off", "score": None, "sentinel_score": None}
        ranked = self.ranked(asked.namespace, prompt, snapshot)
        if not ranked:
            return {**nothing, "reason": "empty_namespace", "score": None, "sentinel_score": SENTINEL_SCORE}
        best = ranked[0]
        scores = {"score": best["score"], "sentinel_score": SENTINEL_SCORE}
        if best["score"] <= SENTINEL_SCORE:
            return {**nothing, "reason": "below_sentinel", **scores}
        fact = {name: best[name] for name in ("id", "statement", "source", "score")}
        return {**nothing, "facts": [fact], "fact": fact, "reason": None, **scores}

    async def stream(self, body):
        recipe = self.recipe(body.prompt, body.recipe)
        fact = recipe["fact"] and self.live(body.recipe.namespace, recipe["snapshot"])[recipe["fact"]["id"]]
        answer = f"{fact['target']}." if fact else UNEDITED
        try:
            for place, word in enumerate(answer.split(" ")):
                choice = {"index": 0, "text": f" {word}", "logprobs": None, "finish_reason": None}
                if place == 0:
                    choice["recipe"] = recipe
                yield f"data: {json.dumps({'object': 'text_completion', 'choices': [choice]})}\n\n"
                await asyncio.sleep(self.delay_s)
            if self.broken:
                yield f"data: {json.dumps(ApiError(503, 'an engine was lost; try again').body())}\n\n"
                return
            choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}
            yield f"data: {json.dumps({'object': 'text_completion', 'choices': [choice]})}\n\ndata: [DONE]\n\n"
        finally:
            self.streams_closed += 1


def _similarity(left, right):
    left_words, right_words = (set(re.findall(r"\w+", text.lower())) for text in (left, right))
    return len(left_words & right_words) / max(1, len(left_words | right_words))


def create_app(api):
    """The page and the fake interface as one application."""
    app = FastAPI(redirect_slashes=False)
    app.include_router(router)

    @app.middleware("http")
    async def keyed(request: Request, call_next):
        api.requests.append((request.method, request.scope["raw_path"].decode()))
        wrong = api.key and request.headers.get("authorization") != f"Bearer {api.key}"
        if wrong and request.url.path.startswith("/v1/"):
            return JSONResponse(ApiError(401, "this key is not known here").body(), status_code=401)
        return await call_next(request)

    @app.exception_handler(ApiError)
    async def api_error(request, error):
        return JSONResponse(error.body(), status_code=error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error):
        return JSONResponse(ApiError(400, f"the request is not valid: {error.errors()}").body(), status_code=400)

    @app.get("/v1/models")
    async def models():
        return {"object": "list", "data": [{"id": MODEL, "object": "model"}]}

    @app.post("/v1/completions")
    async def completions(body: CompletionBody):
        if not body.prompt.strip():
            raise ApiError(400, "'prompt' is empty; give text to complete", param="prompt")
        return StreamingResponse(api.stream(body), media_type="text/event-stream")

    @app.put("/v1/facts")
    async def put(body: PutBody):
        outcomes = api.put(body.namespace or "default", body.facts)
        return {"snapshot": api.snapshot, "facts": outcomes}

    @app.get("/v1/facts")
    async def facts(
        model: str | None = None,
        namespace: str = "default",
        limit: int = 10,
        cursor: int = 0,
        min_snapshot: int | None = None,
    ):
        snapshot = api.seen(min_snapshot)
        live = sorted(api.live(namespace, snapshot).values(), key=lambda fact: fact["id"])
        end = cursor + limit
        next_cursor = str(end) if end < len(live) else None
        return {"snapshot": snapshot, "facts": live[cursor:end], "next_cursor": next_cursor}

    @app.post("/v1/facts/search")
    async def search(body: SearchBody):
        snapshot = api.seen(body.min_snapshot)
        found = api.ranked(body.namespace, body.query, snapshot)[: body.limit]
        return {"snapshot": snapshot, "facts": found, "sentinel_score": SENTINEL_SCORE}

    @app.post("/v1/facts/delete")
    async def delete_many(body: DeleteBody):
        api.delete(body.namespace or "default", body.ids)
        return {"snapshot": api.snapshot, "facts": [{"id": fact_id, "outcome": "deleted"} for fact_id in body.ids]}

    @app.delete("/v1/facts/{fact_id:path}")
    async def delete(fact_id: str, model: str | None = None, namespace: str = "default"):
        api.delete(namespace, [fact_id])
        return {"snapshot": api.snapshot, "outcome": "deleted"}

    @app.get("/v1/snapshots/current")
    async def current(model: str | None = None, min_snapshot: int | None = None):
        snapshot = api.seen(min_snapshot)
        return {
            "model": MODEL,
            "snapshot": snapshot,
            "committed_at": api.versions[snapshot]["info"]["committed_at"],
            "num_facts": {namespace: len(facts) for namespace, facts in api.versions[snapshot]["facts"].items()},
            "index_bytes": 2_400_000 if api.sees_all else None,
            "writable": api.writable,
        }

    @app.get("/v1/snapshots")
    async def snapshots(model: str | None = None, limit: int = 10, min_snapshot: int | None = None):
        newest_first = [version["info"] for version in reversed(api.versions[: api.seen(min_snapshot) + 1])]
        hidden = {} if api.sees_all else {"counts": None}
        return {"snapshots": [{**info, **hidden} for info in newest_first[:limit]]}

    @app.post("/v1/snapshots/{version}/activate")
    async def activate(version: int, model: str | None = None):
        api.commit("rollback", copy.deepcopy(api.versions[version]["facts"]), {"to": version})
        return api.versions[-1]["info"]

    return app
