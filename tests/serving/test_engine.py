"""The engine over a real tiny LLM: batches change nothing, refusals are exact."""

import numpy as np
import pytest

from serving.engine import DEFAULT_MAX_TOKENS, CompletionEngine
from serving.messages import Completion, Edit, Prompt, Refusal


@pytest.fixture(scope="module")
def edit():
    prompt_PD = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float16)
    return Edit(fact_id="f", statement="s", source="", prompt_PD=prompt_PD, position="first")


def ask(text, edit=None, max_tokens=8, stop=()):
    return Prompt(text=text, edit=edit, max_tokens=max_tokens, stop=stop)


def test_an_unedited_prompt_gets_what_the_plain_llm_generates(llm, edit):
    texts = ["Hello", "The capital of Ruritania is", "x"]
    among_edits = [prompt for text in texts for prompt in (ask(text), ask(text, edit))]
    answers = CompletionEngine(llm).complete(among_edits)[::2]
    for text, answer in zip(texts, answers, strict=True):
        (plain,) = llm.generate([text], [None], max_new_tokens=8)
        assert (answer.text, answer.num_new_tokens) == (plain.text, len(plain.token_ids))


def test_prompts_of_different_wishes_get_the_same_together_as_alone(llm, edit):
    plain = CompletionEngine(llm).complete([ask("The river", max_tokens=12)])[0].text
    prompts = [
        ask("The river", max_tokens=12),
        ask("The river", edit, max_tokens=12),
        ask("A much longer prompt than the others", edit),
        ask("The river", max_tokens=12, stop=(plain[3],)),
        ask("The river", max_tokens=2),
        ask("x", max_tokens=None),
    ]
    engine = CompletionEngine(llm)
    together = engine.complete(prompts)
    assert together == [engine.complete([prompt])[0] for prompt in prompts]
    assert together[0].text != together[1].text, "the edit should show, or this test says nothing"
    assert together[3].finish_reason == "stop"
    assert plain[3] not in together[3].text
    assert together[4].num_new_tokens == 2


def test_a_prompt_fills_the_context_to_the_last_token(llm, edit):
    engine = CompletionEngine(llm)
    room = llm.max_length - 1 - 8  # BOS and eight new tokens; the tokenizer speaks bytes
    fits, over = engine.complete([ask("a" * room), ask("a" * (room + 1))])
    assert isinstance(fits, Completion)
    assert isinstance(over, Refusal)
    assert over.code == "context_length_exceeded"
    assert all(number in over.message for number in (str(llm.max_length), str(room + 2)))
    (with_edit,) = engine.complete([ask("a" * (room - 2), edit)])
    assert isinstance(with_edit, Refusal), "virtual tokens take room too"


def test_the_default_length_takes_what_the_context_leaves(llm):
    nearly_full = "a" * (llm.max_length - 1 - 4)
    short, long = CompletionEngine(llm).complete([ask("ab", max_tokens=None), ask(nearly_full, max_tokens=None)])
    assert short.num_new_tokens <= DEFAULT_MAX_TOKENS
    assert isinstance(long, Completion)
    assert long.num_new_tokens <= 4
