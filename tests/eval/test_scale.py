"""Very many facts at once: the same answers as by exact retrieval, and what is lost told apart."""

import dataclasses

import numpy as np
import pytest
from tiny_models import tiny_editor, tiny_llm

from recipe_ray.errors import TableError
from recipe_ray.eval.evaluation import edit_of, evaluate_cell
from recipe_ray.eval.large import EncodedFacts, TableFacts
from recipe_ray.eval.methods.recipe import Recipe
from recipe_ray.eval.methods.retrieving import EditorEncoding
from recipe_ray.eval.protocol import plain_reader
from recipe_ray.eval.results import CellSettings
from recipe_ray.eval.scale import evaluate_scale, invented_cases
from recipe_ray.store.indexes.tuning import IndexSettings
from recipe_ray.testbed.million import generate_facts

NUM_FACTS = 3000
EDITOR = tiny_editor(similarity="cosine")
CASES = invented_cases(NUM_FACTS, 20)


def test_the_sample_is_of_stored_facts_with_a_rephrasing_and_a_stranger_each():
    facts = {fact["id"]: fact for fact in generate_facts(NUM_FACTS, 0)}
    subjects = {fact["subject"] for fact in facts.values()}
    assert len(CASES) == 20
    for case in CASES:
        fact = facts[case.fact_id]
        assert (case.prompt, case.target) == (fact["prompt"], fact["target"])
        (reworded,), (stranger,) = case.prompts("generality"), case.prompts("locality")
        assert reworded != case.prompt
        assert fact["subject"] in reworded
        assert not any(f" {subject} " in f" {stranger} " for subject in subjects if len(subject) > 8)
    assert len(invented_cases(5, 20)) == 5


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    facts = EncodedFacts(EDITOR, NUM_FACTS, tmp_path_factory.mktemp("keys"), settings=IndexSettings(kind="exact"))
    return facts, evaluate_scale(facts, EditorEncoding(EDITOR), CASES, unedited=plain_reader(tiny_llm()))


def test_thousands_from_a_file_answer_as_the_same_facts_in_memory(exact):
    """RECIPE's own path, every fact applied, with keys as the file has them."""
    facts, result = exact
    llm = tiny_llm()
    statements = [f"{fact['prompt']} {fact['target']}" for fact in generate_facts(NUM_FACTS, 0)]
    row_of = {statement: row for row, statement in enumerate(statements)}
    keys = EDITOR.encode_facts(statements)[0].astype(np.float16).astype(np.float32)

    def stored(wanted):
        rows = np.array([row_of[statement] for statement in wanted])
        return keys[rows], facts.prompts(rows)

    recipe = Recipe(llm, EDITOR, encode_facts=stored)
    edits = [
        dataclasses.replace(edit_of(CASES[0]), fact_id=fact["id"], prompt=fact["prompt"], target=fact["target"])
        for fact in generate_facts(NUM_FACTS, 0)
    ]
    recipe.apply(edits)
    recipe.undo = lambda: None
    recipe.apply = lambda edits: None  # the sample's own are in force already
    same = evaluate_cell(
        recipe,
        CASES,
        CellSettings(data="x", num_edits=len(CASES), mode="batch", num_speed_prompts=0),
        unedited=plain_reader(llm),
    )
    assert result.cell.free == same.free
    assert result.cell.teacher_forced == same.teacher_forced
    assert result.cell.retrieval == same.retrieval == result.exact_retrieval
    assert (result.index_missed, result.index_changed) == (0.0, 0.0)
    assert result.cell.settings.num_edits == NUM_FACTS


def test_what_an_index_misses_is_told_apart_from_what_exact_retrieval_loses(exact, tmp_path):
    _, whole = exact
    lists = IndexSettings(kind="ivf", num_lists=200, num_probes=1, min_recall=0.0)
    facts = EncodedFacts(EDITOR, NUM_FACTS, tmp_path, settings=lists)
    result = evaluate_scale(facts, EditorEncoding(EDITOR), CASES, unedited=plain_reader(tiny_llm()))
    assert result.exact_retrieval == whole.exact_retrieval
    assert 0 < result.index_missed < 1
    assert result.cell.retrieval["right_fact"].value <= whole.cell.retrieval["right_fact"].value
    row = result.row()
    assert (row["T"], row["index_missed"]) == (NUM_FACTS, result.index_missed)
    assert row["exact_right_fact"] == whole.exact_retrieval["right_fact"].value
    assert row["lookup_ms_p50"] > 0 < row["encode_ms_p50"]


def test_keys_are_encoded_once(tmp_path):
    first = EncodedFacts(EDITOR, 50, tmp_path)
    assert first.seconds_per_fact > 0
    again = EncodedFacts(EDITOR, 50, tmp_path)
    assert again.seconds_per_fact is None
    queries = EDITOR.encode_queries(["The capital of Ruritania is"])
    assert again.search(queries) == first.search(queries)
    assert EncodedFacts(EDITOR, 50, tmp_path, seed=1).seconds_per_fact is not None


def test_a_table_without_an_index_is_refused_in_one_line(tmp_path):
    with pytest.raises(TableError, match=r"has no index of the editor with fingerprint .*; run jobs/build_index\.py"):
        TableFacts(str(tmp_path / "table"), EDITOR.identity())
