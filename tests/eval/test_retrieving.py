"""Which fact a retrieving method puts before a question."""

import numpy as np
import pytest
from tiny_models import tiny_editor, tiny_llm

from recipe_ray.errors import EditorError
from recipe_ray.eval.cases import Ask, CaseQuestion, EvalCase, facts_of_prompts
from recipe_ray.eval.evaluation import edit_of
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.held import HeldFacts
from recipe_ray.eval.methods.in_context import (
    Oracle,
    choose_threshold,
    in_context_by_editor,
    in_context_by_sentences,
)
from recipe_ray.eval.methods.recipe import Recipe

CASES = tuple(
    EvalCase(
        fact_id=name,
        prompt=f"The {name} is",
        target=target,
        others=(
            CaseQuestion(sort="generality", kind="rephrase", prompt=f"What is the {name}? It is", target=target),
            CaseQuestion(sort="locality", kind="near", prompt=f"No {name} is"),
        ),
    )
    for name, target in (("sea", "red"), ("sky", "blue"), ("lawn", "green"), ("wall", "grey"))
)
EDITS = [edit_of(case) for case in CASES]
PROMPTS = [question.prompt for case in CASES for question in case.questions]


@pytest.fixture(scope="module")
def llm():
    return tiny_llm()


def by_hand(editor, prompts=PROMPTS, edits=EDITS):
    """Rows of the applied facts, -1 for none, one query at a time."""
    keys, _ = editor.encode_facts([edit.statement for edit in edits])
    queries = editor.encode_queries(prompts)
    limits = editor.thresholds(queries)
    scores = queries @ keys.T
    return [int(row.argmax()) if row.max() > limit else -1 for row, limit in zip(scores, limits, strict=True)]


@pytest.mark.parametrize("num_calls", [1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_recipe_puts_the_prompt_of_the_nearest_fact_before_the_question_where_it_beats_the_sentinel(
    llm, seed, num_calls
):
    editor = tiny_editor(similarity="cosine", seed=seed)
    recipe = Recipe(llm, editor)
    assert recipe.asks(PROMPTS) == [Ask(prompt) for prompt in PROMPTS]  # nothing is held yet
    for call in range(num_calls):
        recipe.apply(EDITS[call * 4 // num_calls : (call + 1) * 4 // num_calls])
    _, prompts = editor.encode_facts([edit.statement for edit in EDITS])
    expected = by_hand(editor)
    for ask, row, prompt in zip(recipe.asks(PROMPTS), expected, PROMPTS, strict=True):
        assert ask.text == prompt
        if row < 0:
            assert ask.fact == -1
        else:
            np.testing.assert_allclose(recipe.reader.prompts_NPD[ask.fact], prompts[row], rtol=1e-4, atol=1e-5)
    found = recipe.retrieve(PROMPTS)
    assert [found.fact_ids_B[place] if on else None for place, on in enumerate(found.applied_B)] == [
        None if row < 0 else EDITS[row].fact_id for row in expected
    ]
    recipe.undo()
    assert recipe.state_bytes() == 0
    assert recipe.asks(PROMPTS) == [Ask(prompt) for prompt in PROMPTS]


def test_some_question_above_applies_a_fact_and_some_does_not():
    rows = [row for seed in range(4) for row in by_hand(tiny_editor(similarity="cosine", seed=seed))]
    assert min(rows) < 0 < max(rows)


def test_a_later_edit_of_a_fact_takes_the_place_of_the_earlier(llm):
    recipe = Recipe(llm, editor := tiny_editor(num_sentinel_tokens=0, similarity="cosine"))
    editor.threshold.fill_(-np.inf)
    recipe.apply(EDITS[:1])
    kept = recipe.state_bytes()
    recipe.apply([Edit(fact_id="sea", prompt="The sea is", target="black")])
    assert recipe.state_bytes() == kept
    _, prompts = editor.encode_facts(["The sea is black"])
    (ask,) = recipe.asks(["The sea is"])
    np.testing.assert_allclose(recipe.reader.prompts_NPD[ask.fact], prompts[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_sentinel_tokens", [0, 10])
def test_without_virtual_tokens_the_statements_words_are_read(llm, num_sentinel_tokens):
    editor = tiny_editor(similarity="cosine", num_virtual_tokens=0, num_sentinel_tokens=num_sentinel_tokens)
    if not num_sentinel_tokens:
        editor.threshold.fill_(-np.inf)
    recipe = Recipe(llm, editor, name="no-prompt")
    recipe.apply(EDITS)
    expected = by_hand(editor)
    assert recipe.asks(PROMPTS) == [
        Ask(prompt if row < 0 else f"{EDITS[row].statement}. {prompt}")
        for prompt, row in zip(PROMPTS, expected, strict=True)
    ]
    assert num_sentinel_tokens or min(expected) >= 0


def test_in_context_pastes_what_the_same_retriever_finds(llm):
    editor = tiny_editor(similarity="cosine")
    method = in_context_by_editor(llm, editor)
    method.apply(EDITS)
    rows = by_hand(editor)
    assert [ask.text for ask in method.asks(PROMPTS)] == [
        prompt if row < 0 else f"{EDITS[row].statement}. {prompt}" for prompt, row in zip(PROMPTS, rows, strict=True)
    ]


def test_an_editor_for_another_llm_is_refused(llm):
    editor = tiny_editor()
    editor.llm_width = 48
    with pytest.raises(EditorError, match="width 32, but the editor's prompts have width 48"):
        Recipe(llm, editor)


def letters(texts):
    """Bags of letters, of unit norm: a sentence encoder."""
    counts = np.array([[text.lower().count(chr(97 + place)) for place in range(26)] for text in texts], np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_the_threshold_decides_rightly_as_often_as_any(llm):
    keys = letters([case.statement for case in CASES])

    def rightness(threshold):
        own, other = [], []
        for row, case in enumerate(CASES):
            for question in case.questions:
                scores = letters([question.prompt])[0] @ keys.T
                if question.sort == "locality":
                    other.append(scores.max() <= threshold)
                else:
                    own.append(scores.max() > threshold and scores.argmax() == row)
        return np.mean(own) + np.mean(other)

    chosen = choose_threshold(letters, CASES)
    assert rightness(chosen) == max(map(rightness, np.linspace(-0.1, 1.1, 2000)))
    method = in_context_by_sentences(llm, letters, CASES)
    method.apply(EDITS)
    applied = (letters(PROMPTS) @ keys.T).max(1) > chosen
    assert [ask.text != prompt for ask, prompt in zip(method.asks(PROMPTS), PROMPTS, strict=True)] == applied.tolist()
    assert len(set(applied.tolist())) == 2


def test_an_oracle_pastes_the_right_statement_of_an_edit_in_force_and_nothing_else(llm):
    oracle = Oracle(llm, facts_of_prompts(CASES))
    oracle.apply(EDITS[:2])
    for case, edit in zip(CASES, EDITS, strict=True):
        for question in case.questions:
            right = question.sort != "locality" and edit in EDITS[:2]
            expected = f"{edit.statement}. {question.prompt}" if right else question.prompt
            assert oracle.asks([question.prompt]) == [Ask(expected)]
    oracle.undo()
    assert oracle.asks(PROMPTS) == [Ask(prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("exact_below", [1, 10**6])
def test_what_is_held_is_found_by_an_index_too(exact_below):
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((300, 16)).astype(np.float32)
    held = HeldFacts(exact_below=exact_below)
    for start in range(0, 300, 100):
        edits = [Edit(fact_id=str(row), prompt="p", target="t") for row in range(start, start + 100)]
        held.hold(edits, keys[start : start + 100])
        queries = keys[: start + 100] + 0.05 * rng.standard_normal((start + 100, 16)).astype(np.float32)
        rows, scores = held.nearest(queries)
        best = (queries @ keys[: start + 100].T).argmax(1)
        assert (rows == best).mean() >= 0.99
        np.testing.assert_allclose(scores, (queries * keys[rows]).sum(1), rtol=1e-4)
    assert held.key_bytes() == keys.nbytes
