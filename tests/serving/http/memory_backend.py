"""A table of facts in memory behind the HTTP interface, and a client to ask it."""

import asyncio
import dataclasses
from datetime import UTC, datetime

import httpx
import numpy as np
from silent_observer import SilentObserver

from serving.http.access import Access
from serving.http.app import create_http_app
from serving.http.context import Limits, ModelEntry, Service
from serving.keys import Key, Keyring, digest_of
from serving.messages import (
    AppliedFact,
    FactLookup,
    FactPage,
    Finding,
    ModelStatus,
    Refusal,
    ScoredFact,
    SearchResult,
    SnapshotInfo,
    StoredFact,
    WriteResult,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class MemoryBackend:
    """One version for each write that changes something; scores are counts of common words, the sentinel's is 1.5."""

    def __init__(self):
        self.facts_by_version = [{}]
        self.calls = []
        self.lag = 0  # reads see this many versions less, one fewer each time
        self.delay_s = 0.0
        self.raises = None

    @property
    def version(self):
        return len(self.facts_by_version) - 1

    def read(self):
        seen = max(0, self.version - self.lag)
        self.lag = max(0, self.lag - 1)
        return seen, self.facts_by_version[seen]

    async def find(self, lookups):
        self.calls.append("find")
        return [self._find(lookup) for lookup in lookups]

    def _find(self, lookup):
        if lookup.snapshot is not None and lookup.snapshot > self.version:
            return Refusal(message="no such snapshot", code="snapshot_not_found", param="recipe.snapshot", status=404)
        version = self.version if lookup.snapshot is None else lookup.snapshot
        scored = _scored(self.facts_by_version[version], lookup.query, lookup.namespace)
        applied = [
            AppliedFact(
                fact_id=fact.fact_id,
                statement=fact.statement,
                source=fact.source,
                score=score,
                prompt_PD=np.ones((1, 2)),
            )
            for score, fact in scored[: lookup.top_k]
            if score > 1.5
        ]
        return Finding(
            snapshot=version,
            facts=tuple(applied),
            declined=None if applied else "below_sentinel" if scored else "empty_namespace",
            score=scored[0][0] if scored else None,
            sentinel_score=1.5,
        )

    async def complete(self, requests):
        raise NotImplementedError

    async def stream(self, request):
        raise NotImplementedError
        yield

    async def write(self, facts):
        self.calls.append("write")
        await asyncio.sleep(self.delay_s)
        if self.raises is not None:
            raise self.raises
        standing, outcomes = dict(self.facts_by_version[-1]), []
        for fact in facts:
            place = (fact.namespace, fact.fact_id)
            old = standing.get(place)
            if fact.op == "delete":
                outcomes.append("absent" if old is None else "deleted")
                standing.pop(place, None)
                continue
            new = StoredFact(
                fact_id=fact.fact_id,
                namespace=fact.namespace,
                statement=fact.statement,
                prompt=fact.prompt,
                target=fact.target,
                subject=fact.subject,
                source=fact.source,
                updated_at=fact.updated_at or NOW,
                expires_at=fact.expires_at,
            )
            same = old is not None and dataclasses.replace(old, updated_at=new.updated_at) == new
            outcomes.append("new" if old is None else "unchanged" if same else "changed")
            standing[place] = old if same else new
        if standing != self.facts_by_version[-1]:
            self.facts_by_version.append(standing)
        ids = tuple(fact.fact_id for fact in facts)
        return WriteResult(snapshot=self.version, outcomes=tuple(outcomes), fact_ids=ids)

    async def fact(self, namespace, fact_id, *, min_snapshot=None):
        self.calls.append("fact")
        version, facts = self.read()
        return FactLookup(snapshot=version, fact=facts.get((namespace, fact_id)))

    async def facts(self, namespace, *, after_id, limit):
        self.calls.append("facts")
        version, facts = self.read()
        ids = sorted(fact_id for of, fact_id in facts if of == namespace and (after_id is None or fact_id > after_id))
        page = ids[:limit]
        return FactPage(
            snapshot=version,
            facts=tuple(facts[namespace, fact_id] for fact_id in page),
            next_id=page[-1] if len(ids) > limit else None,
        )

    async def search(self, query, namespace, *, limit):
        self.calls.append("search")
        version, facts = self.read()
        found = tuple(ScoredFact(fact=fact, score=score) for score, fact in _scored(facts, query, namespace)[:limit])
        return SearchResult(snapshot=version, facts=found, sentinel_score=1.5)

    async def snapshots(self, *, limit):
        return [self._info(version) for version in range(self.version, -1, -1)][:limit]

    async def activate(self, version):
        self.calls.append("activate")
        if version > self.version:
            return Refusal(message="no such snapshot", code="snapshot_not_found", param="version", status=404)
        self.facts_by_version.append(self.facts_by_version[version])
        return self._info(self.version)

    async def status(self):
        version, facts = self.read()
        namespaces = [namespace for namespace, _ in facts]
        return ModelStatus(
            snapshot=version,
            committed_at=NOW,
            num_facts={namespace: namespaces.count(namespace) for namespace in namespaces},
            index_bytes=99,
            writable=True,
        )

    def _info(self, version):
        return SnapshotInfo(version=version, committed_at=NOW, operation="put", counts={"new": 1})


def _scored(facts, query, namespace):
    words = set(query.lower().split())
    mine = [fact for (of, _), fact in facts.items() if of == namespace]
    return sorted(
        ((float(len(words & set(fact.statement.lower().split()))), fact) for fact in mine),
        key=lambda pair: (-pair[0], pair[1].fact_id),
    )


class Recorder(SilentObserver):
    """Keeps what it is told of requests."""

    def __init__(self):
        self.requests = []

    def request(self, *, route, model, status, seconds):
        assert seconds >= 0
        self.requests.append((route, model, status))


def key(key_id, scopes, namespaces="*", **values):
    """A key whose secret is `rr_` and its id."""
    return Key.model_validate(
        {"id": key_id, "sha256": digest_of(f"rr_{key_id}"), "scopes": scopes, "namespaces": namespaces, **values}
    )


def access_of(keys):
    """Access by these keys, as the list holds them at the time; open where there are none."""

    async def keyring():
        return Keyring(keys)

    return Access(keyring) if keys else Access.open()


class Client:
    """The application of one or more backends, asked as over the network."""

    def __init__(self, *keys, models=("m",), **limits):
        self.keys = list(keys)
        self.backends = {name: MemoryBackend() for name in models}
        self.backend = self.backends[models[0]]
        self.observer = Recorder()
        self.service = Service(
            models={name: ModelEntry(name=name, backend=backend) for name, backend in self.backends.items()},
            access=access_of(self.keys),
            limits=Limits(**limits),
            observer=self.observer,
        )
        self.app = create_http_app(self.service)

    def connect(self):
        # As a server does: an exception's response has been sent before the exception is seen again.
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test")

    def __call__(self, method, path, *, as_=None, headers=None, **kwargs):
        headers = {**({"Authorization": f"Bearer rr_{as_}"} if as_ else {}), **(headers or {})}

        async def send():
            async with self.connect() as client:
                return await client.request(method, path, headers=headers, **kwargs)

        return asyncio.run(send())

    def put(self, *facts, as_=None, **body):
        return self("PUT", "/v1/facts", json={"facts": list(facts), **body}, as_=as_)


def assert_refused(response, status, *, code, param=None, says=""):
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert says in error["message"]
