"""Which relation a record asks for: its own template first, the target where templates are shared, patterns last."""

import gzip
import json
from pathlib import Path

import pytest

from recipe_ray.datasets.wordings.recognition import may_be_held_out, relation_of
from recipe_ray.datasets.wordings.relations import HELD_OUT, KIN_OF_HELD_OUT, SUBJECT, load_relations

REAL = Path(__file__).parents[4] / "shared" / "data"


@pytest.mark.parametrize(
    ("prompt", "relation_id"),
    [
        ("The capital of Ann is", "P36"),
        ("the CAPITAL of ann is", "P36"),
        ("What city did Ann live when he died?", "P20"),
        ("On what date did Ann die?", "P570"),
        ("What is the name of the artist that performed Ann?", "P175"),
        ("Who is Ann named after?", "P138"),
        ("Which network aired Ann?", "P449"),
        ("Which country has Ann as its capital?", "P1376"),
        ("How tall is the cousin of Ann?", None),
    ],
)
def test_a_prompt_tells_its_relation(prompt, relation_id):
    assert relation_of(prompt, "Ann") == relation_id


def test_a_template_that_relations_share_is_told_by_the_target():
    assert relation_of("Ann plays", "Ann", "violin") == "P1303"
    assert relation_of("Ann plays", "Ann", "soccer") == "P641"
    assert relation_of("Ann plays", "Ann", "jazz") == "P136"
    assert relation_of("Ann plays", "Ann") == "P1303"  # it could be held out
    assert relation_of("Ann is located in", "Ann", "Asia") == "P30"
    assert relation_of("Ann is located in", "Ann", "Peru") == "P17"
    assert relation_of("Ann is located in", "Ann", "Ohio") == "P131"


def test_every_wording_is_its_own_relations_and_none_could_be_a_relation_held_out():
    for relation in load_relations().values():
        for text in relation.training.all + relation.reporting.all:
            assert relation_of(text.replace(SUBJECT, "Zy Qo"), "Zy Qo") == relation.id, text
            assert relation.id in HELD_OUT + KIN_OF_HELD_OUT or not may_be_held_out(text), text


def test_a_text_without_a_subject_is_held_out_when_in_doubt():
    assert may_be_held_out("what is the capital of venezuela in spanish")
    assert may_be_held_out("where did the inventor of the radio die")
    assert not may_be_held_out("when was the first world cup of soccer")


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize(("part", "num_held_out"), [("train", 1598), ("val", 309)])
def test_counterfacts_prompts_are_all_known(part, num_held_out):
    records = read(REAL / "counterfact" / f"counterfact-{part}.json.gz")
    relations = [relation_of(record["prompt"], record["subject"], record["ground_truth"]) for record in records]
    assert None not in relations
    assert sum(relation in HELD_OUT for relation in relations) == num_held_out
    assert all(relations.count(relation) >= 12 for relation in HELD_OUT)
    new = [relation_of(record["prompt"], record["subject"], record["target_new"]) for record in records]
    assert sum(one == other for one, other in zip(relations, new, strict=True)) > 0.9 * len(records)
    assert all((one in HELD_OUT) == (other in HELD_OUT) for one, other in zip(relations, new, strict=True))


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data")
def test_zsres_questions_are_nearly_all_known():
    records = read(REAL / "zsre" / "zsre_mend_train-1k.json.gz")
    relations = [relation_of(record["src"], record["subject"], record["answers"][0]) for record in records]
    assert relations.count(None) <= 15
    assert set(relations) - {None} <= set(load_relations())


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize("form", ["cloze", "question"])
def test_mquakes_templates_are_known(form):
    templates = json.loads((REAL / "mquake" / f"{form}_templates.json").read_text(encoding="utf-8"))
    known = {id_: relation_of(text.replace(SUBJECT, "Zy Qo").strip("_ "), "Zy Qo") for id_, text in templates.items()}
    # These four stand in CounterFact too, or among MQuAKE's own, for another relation.
    alike = {("P106", "P101"), ("P170", "P178"), ("P276", "P131"), ("P131", "P276")}
    assert {(id_, told) for id_, told in known.items() if id_ != told} <= alike


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)
