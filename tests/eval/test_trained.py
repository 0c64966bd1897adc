"""A trained editor under evaluation: retrieval by its own keys, queries and thresholds."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_editor, tiny_llm

from recipe_ray.eval.cases import EvalCase
from recipe_ray.eval.editors import Recipe, RetrievedStatement
from recipe_ray.eval.trained import evaluate_trained, trained_editor

CASES = tuple(
    EvalCase(
        fact_id=name,
        statement=f"The {name} is {target}",
        prompt=f"The {name} is",
        target=target,
        generality_prompt=f"What is the {name}? It is",
        locality_prompt=f"No {name} is",
    )
    for name, target in (("sea", "red"), ("sky", "blue"), ("lawn", "green"), ("wall", "grey"))
)


def test_it_decides_by_what_the_editor_encodes():
    model = tiny_editor(similarity="cosine")
    editor, reader = trained_editor(model, tiny_llm(), CASES)
    assert type(editor) is Recipe
    keys, prompts = model.encode_facts([case.statement for case in CASES])
    queries = model.encode_queries([case.generality_prompt for case in CASES])
    scores, limits = queries @ keys.T, model.thresholds(queries)
    expected = [int(row.argmax()) if row.max() > limit else -1 for row, limit in zip(scores, limits, strict=True)]
    assert editor.retrieve("generality", len(CASES)).row_B.tolist() == expected
    np.testing.assert_array_equal(reader.prompts_NPD, prompts)


@pytest.mark.parametrize("num_sentinel_tokens", [0, 10])
def test_without_virtual_tokens_the_statements_words_are_read(num_sentinel_tokens):
    model = tiny_editor(similarity="cosine", num_virtual_tokens=0, num_sentinel_tokens=num_sentinel_tokens)
    if not num_sentinel_tokens:
        model.threshold.fill_(-torch.inf)
    editor, _ = trained_editor(model, tiny_llm(), CASES)
    assert type(editor) is RetrievedStatement
    found = editor.retrieve("reliability", len(CASES)).row_B
    for case, row, ask in zip(CASES, found, editor.asks("reliability", len(CASES)), strict=True):
        assert ask.text == (case.prompt if row < 0 else f"{CASES[row].statement}. {case.prompt}")
    assert num_sentinel_tokens or (found >= 0).all()


def test_metrics_come_by_the_number_of_edits_at_once():
    answers, retrieval = evaluate_trained(tiny_editor(), tiny_llm(), CASES, [1, 2, 4])
    assert list(answers) == list(retrieval) == ["1", "2", "4"]
    assert retrieval["1"]["right_fact"] == 1.0
    for metrics in answers.values():
        assert set(metrics["free"]) == {"reliability", "generality", "locality"}
