"""Completions: what is looked up, what the engine is asked, and what an answer says."""

import numpy as np
import pytest
from fake_service import MODEL, applied_fact, assert_refused, events_of
from openai.types import Completion

from serving.http.access import Caller

APPLIED = {
    "snapshot": 7,
    "edits": True,
    "facts": [{"id": "f0", "statement": "The president number 0 is Ada", "source": "gazette", "score": 2.0}],
    "fact": {"id": "f0", "statement": "The president number 0 is Ada", "source": "gazette", "score": 2.0},
    "reason": None,
    "score": 2.0,
    "sentinel_score": 1.0,
}


def unedited(reason, *, edits=True):
    nothing = {"facts": [], "fact": None, "score": None, "sentinel_score": None}
    return {"snapshot": None, "edits": edits, "reason": reason, **nothing}


def test_an_edited_answer_names_snapshot_fact_and_scores(complete, backend):
    response = complete(model=MODEL, prompt="The president is", max_tokens=4)
    answer = Completion.model_validate(response.json())
    (choice,) = answer.choices
    assert (answer.object, answer.model) == ("text_completion", MODEL)
    assert (choice.text, choice.finish_reason, choice.logprobs) == ("THE PRESIDENT IS ", "length", None)
    assert choice.recipe == APPLIED
    assert answer.usage.to_dict() == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert np.array_equal(backend.requests[0].virtual_PD, applied_fact(0).prompt_PD)


def test_a_declined_edit_says_why_and_still_gives_the_best_score(complete, backend):
    (choice,) = complete(prompt="Rain falls").json()["choices"]
    assert choice["recipe"] == {
        **APPLIED,
        "facts": [],
        "fact": None,
        "reason": "below_sentinel",
        "score": 0.5,
    }
    assert backend.requests[0].virtual_PD is None


def test_several_facts_are_applied_one_behind_the_other(complete, backend):
    (choice,) = complete(prompt="The president is", recipe={"top_k": 2}).json()["choices"]
    assert [fact["id"] for fact in choice["recipe"]["facts"]] == ["f0", "f1"]
    assert choice["recipe"]["fact"]["id"] == "f0"
    both = np.concatenate([applied_fact(0).prompt_PD, applied_fact(1).prompt_PD])
    assert np.array_equal(backend.requests[0].virtual_PD, both)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"prompt": "The president", "recipe": {"edits": False, "query": "president"}}, "edits_off"),
        ({"prompt": "The president is Ada", "echo": True, "max_tokens": 0}, "echo"),
        ({"prompt": [1, 2, 3]}, "no_query"),
        ({"prompt": [[1, 2], [3]]}, "no_query"),
    ],
)
def test_without_a_query_nothing_is_looked_up_and_nothing_applied(complete, backend, tally, body, reason):
    choices = complete(**body).json()["choices"]
    assert [choice["recipe"] for choice in choices] == [unedited(reason, edits=reason != "edits_off")] * len(choices)
    assert backend.lookups == []
    assert {request.virtual_PD for request in backend.requests} == {None}
    assert tally.of("edit") == [{"model": MODEL, "outcome": "off", "margin": None}] * len(choices)
    assert tally.of("retrieval") == []


@pytest.mark.parametrize("extra", [{"prompt": "The president is Ada", "echo": True}, {"prompt": [[1, 2], [3]]}])
def test_a_given_query_edits_what_has_none_of_its_own(complete, backend, extra):
    choices = complete(recipe={"query": "the president"}, **extra).json()["choices"]
    assert [choice["recipe"] for choice in choices] == [APPLIED] * len(choices)
    assert {lookup.query for lookup in backend.lookups} == {"the president"}


MIXED = ["The president is", [5, 6], "Rain falls", [7]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_each_prompt_of_a_mixed_list_is_for_itself(complete, backend, tally, n, stream):
    response = complete(prompt=MIXED, n=n, stream=stream)
    events = events_of(response)[0] if stream else [response.json()]
    recipes = {
        choice["index"]: choice["recipe"] for event in events for choice in event["choices"] if "recipe" in choice
    }
    declined = {**APPLIED, "facts": [], "fact": None, "reason": "below_sentinel", "score": 0.5}
    by_prompt = [APPLIED, unedited("no_query"), declined, unedited("no_query")]
    assert [recipes[index] for index in range(4 * n)] == [recipe for recipe in by_prompt for _ in range(n)]
    assert [lookup.query for lookup in backend.lookups] == ["The president is", "Rain falls"]
    assert [(request.prompt, request.virtual_PD is not None) for request in backend.requests] == [
        ("The president is", True), ((5, 6), False), ("Rain falls", False), ((7,), False),
    ]  # fmt: skip
    assert [told["outcome"] for told in tally.of("edit")] == ["applied", "off", "below_sentinel", "off"]
    assert [told["margin"] for told in tally.of("edit")] == [1.0, None, -0.5, None]
    assert len(tally.of("retrieval")) == 1


@pytest.mark.parametrize(
    ("extra", "reasons", "num_lookups"),
    [
        ({"recipe": {"query": "the president"}}, [None] * 4, 4),
        ({"echo": True}, ["echo"] * 4, 0),
        ({"echo": True, "recipe": {"query": "the president"}}, [None] * 4, 4),
        ({"recipe": {"edits": False, "query": "the president"}}, ["edits_off"] * 4, 0),
    ],
)
def test_what_is_said_of_all_prompts_is_for_all_of_a_mixed_list(complete, backend, extra, reasons, num_lookups):
    choices = complete(prompt=MIXED, **extra).json()["choices"]
    assert [choice["recipe"]["reason"] for choice in choices] == reasons
    assert len(backend.lookups) == num_lookups


def test_a_key_of_several_namespaces_needs_one_where_any_prompt_is_looked_up(complete, access, monkeypatch):
    several = Caller(key_id="k", scopes=frozenset({"infer"}), namespaces=frozenset({"a", "b"}))

    async def caller(headers):
        return several

    monkeypatch.setattr(access, "caller", caller)
    assert complete(prompt=[[5], [6]]).status_code == 200
    assert_refused(complete(prompt=[[5], "a"]), 400, param="recipe.namespace", code="missing_namespace")


def test_the_forms_of_a_prompt(complete, backend):
    for prompt in ("a b", ["a b", "c"], [1, 2.0], [[1, 2], [3]], [[4], "d"]):
        complete(prompt=prompt, n=1.0)
    prompts = [request.prompt for request in backend.requests]
    assert prompts == ["a b", "a b", "c", (1, 2), (1, 2), (3,), (4,), "d"]
    assert all(type(token) is int for prompt in prompts for token in prompt if isinstance(prompt, tuple))


def test_the_query_is_the_end_of_a_long_prompt_from_the_beginning_of_a_word(complete, backend):
    complete(prompt="x" * 100 + " Beforehand, a long story. Who is the president?  \n")
    complete(prompt="y" * 100)
    complete(prompt="short ")
    assert [lookup.query for lookup in backend.lookups] == [
        "a long story. Who is the president?",
        "y" * 40,
        "short",
    ]


def test_what_is_wanted_of_the_facts_reaches_the_retriever(complete, backend):
    complete(prompt="a", recipe={"namespace": " the  news", "snapshot": 7, "min_snapshot": 3, "top_k": 2})
    (lookup,) = backend.lookups
    assert (lookup.namespace, lookup.snapshot, lookup.min_snapshot, lookup.top_k) == ("the news", 7, 3, 2)


def test_how_to_decode_reaches_the_engine(complete, backend):
    complete(prompt="a", max_tokens=3, temperature=0.5, top_p=0.9, seed=4, stop=["x", "y"], logprobs=2, echo=True)
    complete(prompt="a", stop="z")
    sampled, greedy = (request.sampling for request in backend.requests)
    assert (sampled.max_tokens, sampled.temperature, sampled.top_p, sampled.seed) == (3, 0.5, 0.9, 4)
    assert (sampled.stop, sampled.logprobs, sampled.echo) == (("x", "y"), 2, True)
    assert (greedy.max_tokens, greedy.temperature, greedy.seed, greedy.stop) == (None, 0.0, None, ("z",))


def test_choices_are_ordered_by_prompt_and_drawn_with_seeds_of_their_own(complete, backend):
    body = complete(prompt=["a", "b"], n=2, best_of=2, temperature=1.0, seed=5).json()
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [
        (0, "A seed 5"),
        (1, "A seed 6"),
        (2, "B seed 5"),
        (3, "B seed 6"),
    ]
    assert len(backend.lookups) == 2
    assert len({request.request_id for request in backend.requests}) == 4
    assert body["usage"] == {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18}


def test_equal_greedy_choices_are_computed_once(complete, backend):
    body = complete(prompt=["a", "b"], n=2).json()
    assert [choice["text"] for choice in body["choices"]] == ["A ", "A ", "B ", "B "]
    assert len(backend.requests) == 2
    assert body["usage"] == {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}


def test_seeds_stay_within_what_generators_take(complete, backend):
    complete(prompt="a", n=2, temperature=1, seed=2**63 - 1)
    complete(prompt="a", temperature=1, seed=-(2**63))
    assert [request.sampling.seed for request in backend.requests] == [2**63 - 1, 0, 0]


def test_logprobs_have_a_tokens_own_among_the_best_and_offsets_in_the_text(complete):
    body = complete(prompt="a bc", logprobs=2).json()
    logprobs = Completion.model_validate(body).choices[0].logprobs
    assert logprobs.tokens == ["A ", "BC "]
    assert logprobs.token_logprobs == [-1.5, -1.5]
    assert logprobs.text_offset == [0, 2]
    assert logprobs.top_logprobs[1] == {"best": -0.25, "worst": -9999.0, "BC ": -1.5}


def test_an_echoed_prompts_first_token_has_no_logprob(complete):
    logprobs = complete(prompt="a b", logprobs=0, echo=True).json()["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [None, -1.5]
    assert logprobs["top_logprobs"] == [None, {"B ": -1.5}]


def test_what_is_told_to_the_observer(complete, tally):
    complete(prompt=["The president", "Rain"])
    assert tally.of("edit") == [
        {"model": MODEL, "outcome": "applied", "margin": 1.0},
        {"model": MODEL, "outcome": "below_sentinel", "margin": -0.5},
    ]
    assert len(tally.of("retrieval")) == 1
    assert [(tokens["num_prompt"], tokens["num_new"]) for tokens in tally.of("tokens")] == [(5, 2), (5, 1)]


def test_a_refusal_of_engine_or_retriever_is_answered_as_it_says(complete):
    response = complete(prompt=["a", "refuse this"])
    assert_refused(response, 400, param="prompt", code="context_length_exceeded", says="too long by far")
    response = complete(prompt="a", recipe={"snapshot": 999})
    assert_refused(response, 404, param="recipe.snapshot", code="snapshot_not_found", says="no such snapshot")
