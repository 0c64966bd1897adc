"""Answers in pieces, faults on the way, and clients that leave."""

import asyncio
import json
import logging

import pytest
from fake_service import MODEL, assert_refused, events_of
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from serving import errors
from serving.http.sse import merge

PROMPT = "The president is"


def test_a_streamed_completion_says_what_the_whole_one_says(complete):
    whole = complete(prompt=PROMPT, logprobs=1).json()
    chunks, is_done = events_of(complete(prompt=PROMPT, logprobs=1, stream=True))
    assert is_done
    assert [Completion.model_validate(chunk | {"choices": []}).object for chunk in chunks] == ["text_completion"] * 3
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["model"] for chunk in chunks} == {MODEL}
    assert not any("usage" in chunk for chunk in chunks)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "stop"]
    assert choices[0]["recipe"] == whole["choices"][0]["recipe"]
    assert not any("recipe" in choice for choice in choices[1:])
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        told = [value for choice in choices for value in choice["logprobs"][name]]
        assert told == whole["choices"][0]["logprobs"][name]


def test_a_streamed_chat_begins_with_the_role_and_ends_with_the_reason(chat):
    chunks, is_done = events_of(chat(PROMPT, stream=True, logprobs=True, top_logprobs=1))
    assert is_done
    choices = [ChatCompletionChunk.model_validate(chunk).choices[0] for chunk in chunks]
    assert (choices[0].delta.role, choices[0].delta.content) == ("assistant", "")
    assert choices[0].recipe["fact"]["id"] == "f0"
    assert [choice.delta.content for choice in choices[1:-1]] == ["THE ", "PRESIDENT ", "IS "]
    assert [choice.logprobs.content[0].token for choice in choices[1:-1]] == ["THE ", "PRESIDENT ", "IS "]
    assert (choices[-1].finish_reason, choices[-1].delta.content) == ("stop", None)


def test_choices_of_several_prompts_are_told_apart(complete):
    chunks, is_done = events_of(complete(prompt=["a b", PROMPT], n=2, temperature=1, seed=1, stream=True))
    assert is_done
    texts, recipes = {}, {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        recipes.setdefault(choice["index"], []).extend([choice["recipe"]["reason"]] if "recipe" in choice else [])
    assert texts == {
        0: "A B seed 1",
        1: "A B seed 2",
        2: "THE PRESIDENT IS seed 1",
        3: "THE PRESIDENT IS seed 2",
    }
    assert recipes == {0: ["below_sentinel"], 1: ["below_sentinel"], 2: [None], 3: [None]}


def test_choices_interleave(complete, backend):
    backend.delay_s = 0.005
    chunks, _ = events_of(complete(prompt=["a b c d", "e f g h"], stream=True))
    indices = [chunk["choices"][0]["index"] for chunk in chunks]
    assert indices.index(1) < len(indices) - 1 - indices[::-1].index(0)


def test_equal_greedy_choices_are_generated_once_and_sent_each(complete, backend):
    chunks, _ = events_of(complete(prompt="a b", n=2, stream=True, stream_options={"include_usage": True}))
    assert len(backend.requests) == 1
    texts = dict.fromkeys(range(2), "")
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        texts[choice["index"]] += choice["text"]
    assert texts == {0: "A B ", 1: "A B "}
    assert chunks[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}


@pytest.mark.parametrize("ask", ["complete", "chat"])
def test_usage_comes_last_and_is_null_before_where_it_is_asked_for(complete, chat, ask):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks, _ = events_of(complete(prompt=PROMPT, **options) if ask == "complete" else chat(PROMPT, **options))
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def test_what_fails_before_the_first_token_is_an_error_as_any_other(complete, backend):
    assert_refused(complete(prompt="refuse", stream=True), 400, param="prompt", code="context_length_exceeded")
    backend.raises = errors.overloaded()
    response = complete(prompt="a", stream=True)
    assert_refused(response, 429, code="rate_limited")
    assert response.headers["retry-after"] == "1"
    assert backend.num_open == 0


def test_what_fails_on_the_way_is_an_event_and_ends_the_stream(complete, chat, backend):
    backend.raises, backend.fails_after = errors.unavailable(), 1
    for response in (complete(prompt="a b c", stream=True), chat("a b c", stream=True)):
        events, is_done = events_of(response)
        assert not is_done
        assert events[-1] == errors.unavailable().body()
        assert all("error" not in event for event in events[:-1])
    assert backend.num_open == 0


def test_an_unforeseen_fault_on_the_way_is_logged_and_not_told(complete, backend, caplog):
    backend.raises, backend.fails_after = ZeroDivisionError("secret detail"), 1
    response = complete(prompt="a b c", stream=True)
    events, _ = events_of(response)
    assert events[-1]["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert any(record.exc_info and record.levelno == logging.ERROR for record in caplog.records)


def test_an_answer_that_breaks_off_is_a_fault(complete, backend):
    async def stream(request):
        return
        yield

    backend.stream = stream
    assert_refused(complete(prompt="a", stream=True), 500, code="internal_error")


def test_a_slow_stream_is_given_up_with_an_event(complete, backend):
    backend.delay_s = 0.2  # of 0.5
    events, is_done = events_of(complete(prompt="a b c d e f", stream=True))
    assert not is_done
    assert events[-1]["error"]["code"] == "timeout"
    assert backend.num_open == 0


def test_what_is_told_to_the_observer(complete, tally):
    complete(prompt=["The president", "Rain"], n=2, stream=True)
    assert len(tally.of("first_token")) == 1
    assert 0 <= tally.of("first_token")[0]["seconds"] < 0.5
    assert sorted((tokens["num_prompt"], tokens["num_new"]) for tokens in tally.of("tokens")) == [(5, 1), (5, 2)]


class Client:
    """Asks an ASGI application, and leaves when it has seen enough."""

    def __init__(self, app, path, body):
        self.app, self.path, self.body = app, path, json.dumps(body).encode()
        self.sent = []
        self.left = asyncio.Event()
        self._asked = False

    async def receive(self):
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)
        if message.get("body"):
            self.left.set()

    async def ask(self):
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json"), (b"host", b"test")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        await self.app(scope, self.receive, self.send)


@pytest.mark.parametrize(("stream", "after"), [(True, "first event"), (True, "nothing"), (False, "nothing")])
def test_the_work_of_a_client_that_leaves_is_stopped(app, backend, tally, stream, after):
    backend.delay_s = 0.05 if after == "first event" else 60

    async def main():
        words = " ".join(["word"] * 200)
        client = Client(app, "/v1/completions", {"prompt": [words, words], "stream": stream})
        asking = asyncio.create_task(client.ask())
        while not backend.num_open:
            await asyncio.sleep(0.001)
        if after == "nothing":
            client.left.set()
        async with asyncio.timeout(5):
            await asking
        assert backend.num_open == 0
        if after == "nothing":
            assert [message["status"] for message in client.sent[:1]] == [499]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert all(tokens["num_new"] < 200 for tokens in tally.of("tokens"))


def test_a_client_that_takes_nothing_is_left(app, backend, limits):
    async def main():
        client = Client(app, "/v1/completions", {"prompt": "a b c", "stream": True})

        async def stalls(message):
            await asyncio.Event().wait()

        client.send = stalls
        async with asyncio.timeout(limits.timeout_s + 3):
            await client.ask()
        assert backend.num_open == 0

    asyncio.run(main())


def test_merged_iterators_are_closed_together_whoever_fails():
    closed = []

    async def endless(name):
        try:
            while True:
                yield name
                await asyncio.sleep(0.001)
        finally:
            closed.append(name)

    async def failing():
        yield "c"
        raise ValueError("c failed")

    async def cancelled():
        yield "d"
        raise asyncio.CancelledError

    async def gather(bad, seen):
        deadline = asyncio.get_running_loop().time() + 5
        async for _, item in merge([endless("a"), endless("b"), bad], deadline=deadline):
            seen.add(item)

    async def main():
        for bad, error in ((failing, ValueError), (cancelled, errors.ApiError)):
            seen = set()
            with pytest.raises(error):
                await gather(bad(), seen)
            assert {"a", "b"} <= seen
            assert sorted(closed) == ["a", "b"]
            closed.clear()

    asyncio.run(main())


def test_a_merge_ends_at_its_deadline():
    async def silent():
        await asyncio.Event().wait()
        yield

    async def main():
        async for _ in merge([silent()], deadline=asyncio.get_running_loop().time() + 0.01):
            raise AssertionError("nothing came")

    with pytest.raises(TimeoutError):
        asyncio.run(main())
