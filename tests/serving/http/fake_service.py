"""A fake model behind the HTTP interface, and what is said of its answers."""

import asyncio
import json
from datetime import UTC, datetime

import numpy as np
from silent_observer import SilentObserver

from serving.errors import unavailable
from serving.messages import AppliedFact, Chunk, Completion, Finding, ModelStatus, Refusal, TokenLogprob

MODEL = "tiny"
SNAPSHOT = 7


def applied_fact(number):
    return AppliedFact(
        fact_id=f"f{number}",
        statement=f"The president number {number} is Ada",
        source="gazette",
        score=2.0 - number,
        prompt_PD=np.full((3, 4), number, np.float16),
    )


def text_of(prompt):
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt[0], int):
        return " ".join(map(str, prompt))
    return prompt[-1].content


class FakeBackend:
    """Finds facts for queries that mention a president; answers with the prompt's words in capitals, a word a token.

    A sampled answer ends in its seed. Prompts with "refuse" are refused; `raises` is raised after `fails_after` words.
    """

    def __init__(self):
        self.lookups, self.requests = [], []
        self.raises = None
        self.fails_after = 0
        self.delay_s = 0.0
        self.num_open = 0  # streams and completions in work
        self.is_ready = True
        self.snapshot = SNAPSHOT

    async def find(self, lookups):
        self.lookups += lookups
        return [self._found(lookup) for lookup in lookups]

    def _found(self, lookup):
        if lookup.snapshot == 999:
            return Refusal(message="no such snapshot", code="snapshot_not_found", param="recipe.snapshot", status=404)
        known = "president" in lookup.query
        return Finding(
            snapshot=self.snapshot,
            facts=tuple(applied_fact(number) for number in range(lookup.top_k)) if known else (),
            declined=None if known else "below_sentinel",
            score=2.0 if known else 0.5,
            sentinel_score=1.0,
        )

    async def complete(self, requests):
        self.requests += requests
        self.num_open += len(requests)
        try:
            await asyncio.sleep(self.delay_s)
            if self.raises:
                raise self.raises
            return [self._answer(request) for request in requests]
        finally:
            self.num_open -= len(requests)

    def _answer(self, request):
        if "refuse" in text_of(request.prompt):
            return Refusal(message="too long by far", code="context_length_exceeded", param="prompt")
        words = self._words(request)
        return Completion(
            text="".join(words),
            logprobs=tuple(self._logprobs(request, words)),
            finish_reason="length",
            num_prompt_tokens=5,
            num_new_tokens=len(words),
        )

    def _words(self, request):
        words = [f"{word} " for word in text_of(request.prompt).upper().split()]
        return [*words, f"seed {request.sampling.seed}"] if request.sampling.temperature else words

    def _logprobs(self, request, words):
        if request.sampling.logprobs is None:
            return
        for number, word in enumerate(words):
            offset = len("".join(words[:number]))
            if request.sampling.echo and number == 0:
                yield TokenLogprob(token=word, offset=offset, logprob=None)
            else:
                top = (("best", -0.25), ("worst", float("-inf")))[: request.sampling.logprobs]
                yield TokenLogprob(token=word, offset=offset, logprob=-1.5, top=top)

    async def stream(self, request):
        self.requests.append(request)
        self.num_open += 1
        try:
            if "refuse" in text_of(request.prompt):
                yield Refusal(message="too long by far", code="context_length_exceeded", param="prompt")
                return
            words = self._words(request)
            for number, word in enumerate(words):
                await asyncio.sleep(self.delay_s)
                if self.raises and number == self.fails_after:
                    raise self.raises
                yield Chunk(
                    text=word,
                    logprobs=tuple(self._logprobs(request, words))[number : number + 1],
                    finish_reason="stop" if number == len(words) - 1 else None,
                    num_prompt_tokens=5,
                    num_new_tokens=number + 1,
                )
        finally:
            try:
                await asyncio.sleep(0)  # a clean-up that takes a moment, as a cancellation over a network does
            finally:
                self.num_open -= 1

    async def status(self):
        if not self.is_ready:
            raise unavailable()
        return ModelStatus(
            snapshot=self.snapshot,
            committed_at=datetime(2026, 1, 1, tzinfo=UTC),
            num_facts={"default": 2},
            index_bytes=100,
            writable=True,
        )


class Tally(SilentObserver):
    """Remembers what it is told."""

    def __init__(self):
        self.told = []

    def edit(self, **values):
        self.told.append(("edit", values))

    def retrieval(self, **values):
        self.told.append(("retrieval", values))

    def first_token(self, **values):
        self.told.append(("first_token", values))

    def tokens(self, **values):
        self.told.append(("tokens", values))

    def of(self, kind):
        return [values for told, values in self.told if told == kind]


def assert_refused(response, status, *, param=None, code=None, says=""):
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert (error["param"], error["code"]) == (param, code)
    assert says in error["message"]


def events_of(response):
    """The JSON of each event, and whether the stream said that it was done."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\n")
    data = [event.removeprefix("data: ") for event in response.text.split("\n\n")[:-1]]
    is_done = data[-1] == "[DONE]"
    return [json.loads(event) for event in (data[:-1] if is_done else data)], is_done
