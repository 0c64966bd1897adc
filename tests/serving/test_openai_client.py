"""The official `openai` client, unmodified, against the application over real HTTP."""

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

pytestmark = pytest.mark.ray

PROMPT = "The president of Ruritania is"


@pytest.fixture(scope="module")
def client(server_url):
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_completion_and_its_edit(client):
    answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=8, temperature=0)
    assert isinstance(answer, Completion)
    assert answer.usage.completion_tokens <= 8
    assert answer.choices[0].recipe["facts"][0]["id"] in ("president", "capital")
    plain = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=8, temperature=0, extra_body={"recipe": {"edits": False}}
    )
    assert plain.choices[0].recipe["reason"] == "edits_off"
    assert plain.choices[0].text != answer.choices[0].text


def test_a_stream_says_what_the_whole_answer_says(client):
    whole = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, temperature=0.7, seed=5)
    chunks = list(
        client.completions.create(
            model="tiny",
            prompt=PROMPT,
            max_tokens=12,
            temperature=0.7,
            seed=5,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert len(chunks) > 3, "the answer came in one piece"


def test_a_chat_whole_and_streamed(client):
    wish = {
        "model": "tiny",
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": PROMPT}],
        "max_tokens": 8,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**wish)
    assert isinstance(whole, ChatCompletion)
    assert whole.choices[0].message.role == "assistant"
    with client.chat.completions.create(**wish, stream=True) as stream:
        said = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert said == whole.choices[0].message.content


def test_logprobs_and_echo_parse(client):
    answer = client.completions.create(model="tiny", prompt="abc", max_tokens=2, logprobs=2, echo=True, temperature=0)
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].text.startswith("abc")
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert len(logprobs.tokens) == len(logprobs.text_offset) == answer.usage.total_tokens
    assert logprobs.text_offset[:4] == [0, 0, 1, 2], "BOS is not in the text"
    assert answer.choices[0].recipe["reason"] == "echo"


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_are_in_each_choices_own_text(client, stream):
    """Of a text and of token ids in one list; the tokenizer makes four tokens of the bird."""
    answer = client.completions.create(
        model="tiny", prompt=["a🦜b", [1, 102, 103]], max_tokens=6, logprobs=1, echo=True, stream=stream
    )
    texts, offsets = ["", ""], [[], []]
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            offsets[choice.index] += choice.logprobs.text_offset if choice.logprobs else []
    assert texts[0].startswith("a🦜b")
    assert [of_choice[:7] for of_choice in offsets] == [[0, 0, 1, 1, 1, 1, 2], [0, 0, 1, *offsets[1][3:7]]]
    for text, of_choice in zip(texts, offsets, strict=True):
        assert of_choice == sorted(of_choice)
        assert of_choice[-1] <= len(text)


@pytest.mark.parametrize(
    ("wish", "error", "param"),
    [
        ({"model": "other", "prompt": "a"}, openai.NotFoundError, "model"),
        ({"model": "tiny", "prompt": ""}, openai.BadRequestError, "prompt"),
        ({"model": "tiny", "prompt": "a", "temperature": 9}, openai.BadRequestError, "temperature"),
        ({"model": "tiny", "prompt": "a" * 300}, openai.BadRequestError, "prompt"),
        ({"model": "tiny", "prompt": "a", "suffix": "b"}, openai.BadRequestError, "suffix"),
    ],
)
def test_errors_are_the_clients_own(client, wish, error, param):
    with pytest.raises(error) as caught:
        client.completions.create(**wish)
    assert caught.value.param == param
