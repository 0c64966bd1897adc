import dataclasses

import numpy as np
import pytest
from tables import fill, minutes

from recipe_ray.errors import ConfigError
from recipe_ray.store.reading import near as module
from recipe_ray.store.reading.near import find_near
from recipe_ray.store.table import FactTable


@pytest.fixture
def add(tmp_path, identity):
    """Commits facts of which `keys` is given by id, in a table whose sentinel scores 0.5 for every unit key here."""
    identity = dataclasses.replace(identity, sentinel_K=np.array([0, 0, 0, 0.5], np.float32))

    def add(keys, uri=tmp_path, **more):
        records = [
            {"id": name, "prompt": f"prompt {name}", "target": f"target {name}", **more, **(record or {})}
            for name, (_, record) in keys.items()
        ]
        fill(uri, identity, *records, keys=[key for key, _ in keys.values()])
        return FactTable.open(str(uri))

    return add


def unit(angle, length=1.0, sentinel=1.0):
    """A key in a plane, at an angle in degrees; its last entry meets the sentinel."""
    radians = np.deg2rad(angle)
    return np.array([np.cos(radians) * length, np.sin(radians) * length, 0, sentinel])


def pairs(table, **asked):
    report = find_near(table, **{"limit": 50, "share": 0.98, **asked})
    return [(pair.asked.fact_id, pair.got.fact_id) for pair in report.pairs], report


def test_the_same_key_with_another_target_is_found(add):
    table = add({"a": (unit(0), None), "b": (unit(0), None), "c": (unit(90), None)})
    found, report = pairs(table)
    assert [sorted(pair) for pair in found] == [["a", "b"]]
    assert (report.num_facts, report.num_asked) == (3, 2)
    (pair,) = report.pairs
    assert pair.score == pytest.approx(pair.own_score) == pytest.approx(2)
    assert pair.sentinel == pytest.approx(0.5)


def test_the_share_says_how_near_is_near(add):
    table = add({"a": (unit(0, sentinel=0), None), "b": (unit(20, sentinel=0), None)})  # cos 20° = 0.94
    assert pairs(table, share=0.98)[0] == []
    assert len(pairs(table, share=0.9)[0]) == 1
    with pytest.raises(ConfigError, match="share is 0"):
        pairs(table, share=0)


def test_the_sentinel_may_hold_the_other_back(add):
    keys = {"a": (unit(0, length=1, sentinel=0.1), None), "b": (unit(0, length=1, sentinel=0.1), None)}
    table = add(keys)
    assert len(pairs(table)[0]) == 1
    table.identity = dataclasses.replace(table.identity, sentinel_K=np.array([1.1, 0, 0, 0], np.float32))
    assert pairs(table)[0] == []


def test_a_long_key_takes_the_questions_of_others_and_not_the_other_way(add):
    table = add({"short": (unit(0), None), "long": (unit(30, length=3), None)})
    found, report = pairs(table)
    assert found == [("short", "long")]
    assert report.num_asked == 1


def test_facts_that_answer_the_same_are_no_matter_nor_are_other_namespaces(add):
    table = add(
        {
            "a": (unit(0), {"target": "Lyon"}),
            "b": (unit(0), {"target": " lyon"}),
            "c": (unit(0), {"namespace": "news"}),
        }
    )
    assert pairs(table)[0] == []


def test_only_live_facts_count_and_vectors_of_an_older_event_are_theirs(add):
    add({"a": (unit(0), None), "b": (unit(0), None), "c": (unit(0), {"expires_at": minutes(1)})})
    table = add({"b": (unit(90), {"updated_at": minutes(2), "target": "moved"})})
    assert pairs(table)[0] == []
    assert [sorted(pair) for pair in pairs(table, at=minutes(0))[0]] == [["a", "c"]]


def test_facts_are_asked_for_by_their_prompts_where_there_is_an_encoder(add):
    # By keys nothing is near; the question of a lies between a and b, that of c by itself, that of d away from d.
    table = add(
        {
            "a": (unit(0), None),
            "b": (unit(60), None),
            "c": (unit(180), {"prompt": "", "target": "", "statement": "a statement"}),
            "d": (unit(270, sentinel=0), None),
        }
    )
    queries = {"prompt a": unit(29), "prompt b": unit(60), "a statement": unit(180), "prompt d": unit(100, sentinel=0)}
    asked = []

    def encode(texts):
        asked.extend(texts)
        return np.array([queries[text] for text in texts], np.float32)

    assert pairs(table)[0] == []
    found, report = pairs(table, encode_queries=encode)
    assert found == [("d", "b"), ("d", "c"), ("a", "b")]
    assert report.num_asked == 2
    assert sorted(asked) == sorted(queries)  # each once, however many shards there are
    (pair,) = [pair for pair in report.pairs if pair.asked.fact_id == "a"]
    query = queries["prompt a"]
    assert pair.score == pytest.approx(query @ unit(60), rel=1e-2)
    assert pair.own_score == pytest.approx(query @ unit(0), rel=1e-2)
    assert pair.sentinel == pytest.approx(0.5)


def random_keys(number, seed=0):
    rng = np.random.default_rng(seed)
    return {f"{row:03}": (np.round(rng.normal(size=4) * 2, 1), None) for row in range(number)}


def slow_reference(keys, sentinel, share):
    asked = {}
    for name, (key, _) in keys.items():
        query = key.astype(np.float16).astype(np.float64)
        for other, (other_key, _) in keys.items():
            score = query @ other_key.astype(np.float16).astype(np.float64)
            if other != name and score > max(share * (query @ query), query @ sentinel):
                asked.setdefault(name, set()).add(other)
    return asked


@pytest.mark.parametrize("exact_below", [1000, 10], ids=["exact", "lists"])
def test_facts_at_risk_are_found_across_shards_and_batches(add, monkeypatch, exact_below):
    monkeypatch.setattr(module, "_QUERIES", 16)
    monkeypatch.setattr(module, "DEFAULT_EXACT_BELOW", exact_below)
    keys = random_keys(120)
    table = add(keys)
    expected = slow_reference(keys, table.identity.sentinel_K, share=1.001)
    found, report = pairs(table, limit=10_000, share=1.001)
    assert report.num_asked == pytest.approx(len(expected), abs=0 if exact_below == 1000 else 3)
    for asked, got in found:
        assert got in expected[asked]
    ratios = [pair.score / pair.own_score for pair in report.pairs]
    assert ratios == sorted(ratios, reverse=True)
    few = find_near(table, limit=5, share=1.001)
    assert few.pairs == report.pairs[:5]
    assert few.num_asked == report.num_asked


def test_an_empty_table_has_none(tmp_path, identity):
    table = FactTable.create_or_open(str(tmp_path), identity)
    assert pairs(table)[0] == []
