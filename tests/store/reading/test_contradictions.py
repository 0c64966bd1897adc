import pytest
from tables import fill, minutes
from test_table import Event

from recipe_ray.store.reading import contradictions as module
from recipe_ray.store.reading.contradictions import find_contradictions
from recipe_ray.store.table import FactTable


def record(fact_id, prompt, target, subject="", **more):
    return {"id": fact_id, "prompt": prompt, "target": target, "subject": subject, **more}


def found(uri, **asked):
    return [
        (conflict.namespace, [fact.fact_id for fact in conflict.facts])
        for conflict in find_contradictions(FactTable.open(str(uri)), **asked)
    ]


@pytest.fixture
def add(tmp_path, identity):
    return lambda *records: fill(tmp_path, identity, *records)


def test_one_prompt_in_two_spellings_is_one_prompt(tmp_path, add):
    add(record("a", "The capital of Perú is", "Lima"), record("b", "The capital of Peru\u0301 \u2060is", "Cusco"))
    assert found(tmp_path) == [("default", ["a", "b"])]


def test_one_prompt_with_two_targets_is_a_contradiction_whatever_case_and_spaces(tmp_path, add):
    add(
        record("a", "The capital of France is", "Lyon"),
        record("b", "the CAPITAL  of France is", "Paris"),
        record("c", "The capital of Spain is", "Madrid"),
        record("d", "The capital of Spain is", "madrid"),
        record("e", "The capital of Spain is", "Madrid", namespace="news"),
        record("f", "The capital of France is", "Nice", namespace="news"),
    )
    assert found(tmp_path) == [("default", ["a", "b"])]
    (conflict,) = find_contradictions(FactTable.open(str(tmp_path)))
    assert [(fact.prompt, fact.target) for fact in conflict.facts] == [
        ("The capital of France is", "Lyon"),
        ("the CAPITAL of France is", "Paris"),
    ]
    assert found(tmp_path, namespace="news") == []


def test_subjects_keep_one_prompt_apart_and_none_fits_all(tmp_path, add):
    add(record("a", "Its capital is", "Lyon", "France"), record("b", "Its capital is", "Madrid", "Spain"))
    assert found(tmp_path) == []
    add(record("c", "Its capital is", "Nice", "FRANCE"))
    assert found(tmp_path) == [("default", ["a", "c"])]
    add(record("d", "Its capital is", "Madrid"))
    assert found(tmp_path) == [("default", ["a", "c", "d"])]  # with b it agrees


def test_only_what_stands_and_is_live_contradicts(tmp_path, add):
    add(
        record("a", "It is", "old"),
        record("a", "It is", "new", updated_at=minutes(1)),
        record("b", "It is", "New"),
        record("c", "It is", "gone", expires_at=minutes(1)),
        record("d", "It is", "deleted"),
    )
    add({"id": "d", "op": "delete", "updated_at": minutes(1)})
    assert found(tmp_path) == []
    assert found(tmp_path, at=minutes(0)) == [("default", ["a", "b", "c"])]


def test_statements_without_prompt_are_left_out_and_those_without_target_compared_whole(tmp_path, add):
    add(
        {"id": "a", "statement": "one thing"},
        {"id": "b", "statement": "another thing"},
        {"id": "c", "prompt": "Who?", "statement": "Ada did"},
        {"id": "d", "prompt": "Who?", "statement": "Bob did"},
    )
    assert found(tmp_path) == [("default", ["c", "d"])]


def slow_reference(records):
    pairs = set()
    for one in records:
        for other in records:
            same = " ".join(one["prompt"].casefold().split()) == " ".join(other["prompt"].casefold().split())
            subjects = {one["subject"], other["subject"]} - {""}
            if same and len(subjects) < 2 and one["target"] != other["target"]:
                pairs.add((one["id"], other["id"]))
    return {fact_id for pair in pairs for fact_id in pair}


def test_all_that_contradict_are_found_across_shards_and_commits(tmp_path, add):
    records = [
        record(
            f"{number}", f"prompt {number % 7}", f"target {number % 3 % (number % 5 + 1)}", "xy "[number % 3].strip()
        )
        for number in range(60)
    ]
    for start in range(0, 60, 20):
        add(*records[start : start + 20])
    named = {fact_id for _, fact_ids in found(tmp_path) for fact_id in fact_ids}
    contradicting = slow_reference(records)
    assert named == contradicting
    assert len(contradicting) > 20


def test_after_an_ingest_only_what_it_touched_is_told(tmp_path, add, monkeypatch):
    add(*[record(f"{name}{number}", f"prompt {name}", f"target {number}") for name in "abc" for number in range(2)])
    assert len(found(tmp_path)) == 3
    assert found(tmp_path, fact_ids={"default": ["b1", "never there"]}) == [("default", ["b0", "b1"])]
    assert found(tmp_path, fact_ids={"default": [], "news": ["a0"]}) == []
    assert found(tmp_path, fact_ids={"default": ["never there"]}) == []
    seen = []
    hash_of = module._hashes
    monkeypatch.setattr(module, "_hashes", lambda texts: seen.append(len(texts)) or hash_of(texts))
    found(tmp_path, fact_ids={"default": ["never there"]})
    assert sum(seen) == 0  # where nothing of it is live, nothing is compared


def test_texts_with_equal_hashes_are_no_contradiction(tmp_path, add, monkeypatch):
    add(record("a", "It is", "x"), record("b", "We do", "yy"), record("c", "we do", "zzz"))
    monkeypatch.setattr(module, "hash", len, raising=False)
    assert found(tmp_path) == [("default", ["b", "c"])]


def test_an_empty_table_has_none(tmp_path, identity, append):
    assert list(find_contradictions(FactTable.create_or_open(str(tmp_path), identity))) == []
    append(tmp_path, Event("a", "x"))
    append(tmp_path, Event("a", op="delete", updated=1))
    assert found(tmp_path) == []
