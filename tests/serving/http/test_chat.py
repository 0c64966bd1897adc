"""Chats: which words are looked up, what the engine is asked, and what an answer says."""

import unicodedata

import pytest
from fake_service import MODEL, assert_refused
from openai.types.chat import ChatCompletion


def test_an_answer_has_openais_shape_and_names_its_facts(chat):
    answer = ChatCompletion.model_validate(chat("Who is president?", model=MODEL).json())
    (choice,) = answer.choices
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    assert (choice.message.role, choice.message.content) == ("assistant", "WHO IS PRESIDENT? ")
    assert (choice.finish_reason, choice.logprobs, choice.message.refusal) == ("length", None, None)
    assert [fact["id"] for fact in choice.recipe["facts"]] == ["f0"]
    assert answer.usage.to_dict() == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def test_the_query_is_the_last_user_message_and_the_engine_gets_all_turns(chat, backend):
    chat(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": [{"type": "text", "text": "Who is"}, {"type": "text", "text": "president?"}]},
        {"role": "developer", "content": "Be polite."},
    )
    assert [lookup.query for lookup in backend.lookups] == ["Who is president?"]
    (request,) = backend.requests
    assert [(turn.role, turn.content) for turn in request.prompt] == [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Hi"),
        ("user", "Who is\npresident?"),
        ("system", "Be polite."),
    ]


def test_a_long_message_is_looked_up_by_its_end(chat, backend):
    chat("x" * 100 + " Beforehand, a long story. Who is the president?")
    assert [lookup.query for lookup in backend.lookups] == ["a long story. Who is the president?"]


@pytest.mark.parametrize(
    ("turn", "options", "reason"),
    [
        ({"role": "system", "content": "The president"}, {}, "no_query"),
        ({"role": "user", "content": " "}, {}, "no_query"),
        ({"role": "user", "content": "The president"}, {"edits": False}, "edits_off"),
    ],
)
def test_without_a_query_nothing_is_looked_up(chat, backend, turn, options, reason):
    (choice,) = chat(turn, recipe=options).json()["choices"]
    assert choice["recipe"]["reason"] == reason
    assert backend.lookups == []
    assert backend.requests[0].virtual_PD is None


def test_how_to_decode_reaches_the_engine(chat, backend):
    chat("a", max_completion_tokens=3, temperature=0.5, top_p=0.9, seed=4, stop="x", logprobs=True, top_logprobs=2)
    chat("a", max_tokens=4, max_completion_tokens=4, logprobs=True)
    chat("a", max_tokens=5, logprobs=False, top_logprobs=0)
    first, second, third = (request.sampling for request in backend.requests)
    assert (first.max_tokens, first.temperature, first.top_p, first.seed) == (3, 0.5, 0.9, 4)
    assert (first.stop, first.logprobs, first.echo) == (("x",), 2, False)
    assert (second.max_tokens, second.logprobs) == (4, 0)
    assert (third.max_tokens, third.logprobs) == (5, None)


def test_logprobs_have_bytes_and_alternatives(chat):
    answer = ChatCompletion.model_validate(chat("é", logprobs=True, top_logprobs=2).json())
    (token,) = answer.choices[0].logprobs.content
    assert (token.token, token.logprob, token.bytes) == ("É ", -1.5, [0xC3, 0x89, 0x20])
    assert [(top.token, top.logprob) for top in token.top_logprobs] == [("best", -0.25), ("worst", -9999.0)]


def test_a_token_that_is_a_part_of_a_character_has_no_bytes(chat):
    answer = chat("\ufffd", logprobs=True).json()
    assert answer["choices"][0]["logprobs"]["content"][0]["bytes"] is None


def test_choices_are_drawn_with_seeds_of_their_own(chat):
    choices = chat("a", n=2, temperature=1, seed=5).json()["choices"]
    assert [(choice["index"], choice["message"]["content"]) for choice in choices] == [(0, "A seed 5"), (1, "A seed 6")]


@pytest.mark.parametrize(
    ("turn", "param", "says"),
    [
        ({"role": "tool", "content": "x"}, "messages.0.role", "should be 'system', 'developer', 'user' or 'assistant'"),
        ({"role": "user"}, "messages.0.content", "is missing"),
        ({"role": "user", "content": None}, "messages.0.content", "is not a text"),
        ({"role": "user", "content": []}, "messages.0.content", "is empty"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.0.content", "a part that is no text"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "messages.0.content", "is not a text"),
        ({"role": "user", "content": "a", "name": "Ada"}, "messages.0.name", "not supported"),
        ({"role": "assistant", "content": "a", "tool_calls": [{}]}, "messages.0.tool_calls", "not supported"),
        ({"role": "user", "content": "a", "colour": "red"}, "messages.0.colour", "not a field"),
    ],
)
def test_a_bad_turn_is_refused_by_its_place(chat, turn, param, says):
    response = chat(turn)
    assert_refused(response, 400, param=param, code=response.json()["error"]["code"], says=says)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("function_call", {"name": "f"}),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["text", "audio"]),
        ("store", True),
        ("logit_bias", {"50": 1}),
        ("presence_penalty", 0.5),
        ("reasoning_effort", "high"),
        ("web_search_options", {}),
    ],
)
def test_what_is_not_offered_is_refused_and_not_ignored(chat, field, value):
    assert_refused(chat("a", **{field: value}), 400, param=field, code="unsupported_value", says="not supported")


def test_values_that_change_nothing_are_accepted(chat):
    response = chat(
        "a",
        tools=[],
        tool_choice="none",
        functions=None,
        response_format={"type": "text"},
        store=False,
        metadata={"run": "1"},
        user="u",
        presence_penalty=0.0,
        logit_bias={},
        n=1,
        stream=False,
        stop=None,
        temperature=None,
    )
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens"),
        ({"max_completion_tokens": 33}, "max_completion_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 9}, "n"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"metadata": {"a": 1}}, "metadata.a"),
    ],
)
def test_contradictions_and_limits_name_the_field(chat, body, param):
    assert_refused(chat("a", **body), 400, param=param, code="invalid_value", says=f"'{param}'")


def test_a_chat_without_turns_or_with_too_many_characters_is_refused(chat):
    assert_refused(chat(), 400, param="messages", code="invalid_value", says="at least 1 item")
    response = chat("a" * 6000, "b" * 6000)
    assert_refused(response, 400, param="messages", code="context_length_exceeded", says="12000 characters")


QUESTION = "What is the capital of Perú?"
SPELLINGS = [
    unicodedata.normalize("NFD", QUESTION),
    QUESTION.replace(" ", "\u00a0"),
    QUESTION.replace(" ", "  "),
    QUESTION.replace(" is", "\tis\n"),
    f"\ufeff{QUESTION}\u200b",
    QUESTION.replace("cap", "ca\u00adp"),
    QUESTION.replace(" is", "\x07is\x85"),
]


@pytest.mark.parametrize("spelled", SPELLINGS)
def test_a_question_is_looked_up_in_one_form_and_the_llm_reads_it_as_it_was_written(chat, backend, spelled):
    chat(spelled)
    chat({"role": "user", "content": [{"type": "text", "text": part} for part in spelled.split("\u00a0")]})
    assert [lookup.query for lookup in backend.lookups] == [QUESTION] * 2
    assert backend.requests[0].prompt[0].content == spelled


def test_a_message_of_which_nothing_is_to_be_seen_is_answered_unedited(chat, backend):
    answer = chat("\u200b\x07").json()
    assert answer["choices"][0]["recipe"]["reason"] == "no_query"
    assert not backend.lookups
