"""Retrieval over a snapshot with keys that are easy to see through."""

import numpy as np
import pyarrow as pa
import pytest

from recipe_ray.config import EditorIdentity
from recipe_ray.errors import TableError
from recipe_ray.store.snapshot import Snapshot
from serving.messages import Lookup
from serving.retriever import FactRetriever, RetrieverDeployment

SENTINEL_K = np.array([0.5, 0.5, 0.5], np.float32)
DIRECTIONS = {"president": [1, 0, 0], "capital": [0, 1, 0], "weather": [0.3, 0.3, 0.3]}


class FakeEncoder:
    """The direction of the word that the query holds."""

    def encode_queries(self, queries):
        words = [next(word for word in DIRECTIONS if word in query) for query in queries]
        return np.array([DIRECTIONS[word] for word in words], np.float32)


def snapshot(num_facts):
    facts = pa.table(
        {
            "fact_id": ["a", "b", "c"],
            "namespace": ["default", "default", "news"],
            "statement": ["the president is Ada", "the capital is Strelsau", "the president is Bo"],
            "source": ["gazette", "", "wire"],
            "target": ["Ada", "Strelsau", "Bo"],
        }
    )
    return Snapshot(
        version=4,
        identity=EditorIdentity(
            fingerprint="f",
            encoder="e",
            llm="l",
            llm_width=2,
            key_width=3,
            num_virtual_tokens=1,
            sentinel_K=SENTINEL_K,
        ),
        facts=facts.slice(0, num_facts),
        keys_FK=np.array([[1, 0, 0], [0, 1, 0], [2, 0, 0]], np.float16)[:num_facts],
        prompts_FPD=np.arange(6, dtype=np.float16).reshape(3, 1, 2)[:num_facts],
    )


@pytest.fixture
def find():
    retriever = FactRetriever(FakeEncoder(), snapshot(3), "after_bos")
    return lambda *pairs: retriever.find([Lookup(query=query, namespace=namespace) for query, namespace in pairs])


def test_the_fact_above_the_sentinel_is_handed_over_whole(find):
    (found,) = find(("who is president?", "default"))
    assert (found.score, found.sentinel_score, found.declined) == (1.0, 0.5, None)
    assert (found.edit.fact_id, found.edit.statement) == ("a", "the president is Ada")
    assert (found.edit.source, found.edit.position) == ("gazette", "after_bos")
    np.testing.assert_array_equal(found.edit.prompt_PD, [[0, 1]])


def test_each_lookup_of_a_batch_gets_its_own_answer(find):
    found = find(("president", "default"), ("weather", "default"), ("president", "news"), ("capital", "default"))
    assert [finding.edit and finding.edit.fact_id for finding in found] == ["a", None, "c", "b"]


def test_a_fact_below_the_sentinel_is_declined_with_its_score(find):
    (found,) = find(("weather", "default"))
    assert (found.edit, found.declined) == (None, "below_sentinel")
    assert found.score == pytest.approx(0.3)
    assert found.sentinel_score == pytest.approx(0.45)


def test_a_namespace_without_facts_is_told_from_an_empty_table(find):
    (found,) = find(("president", "sport"))
    assert (found.edit, found.declined, found.score, found.sentinel_score) == (None, "empty_namespace", None, 0.5)
    (found,) = FactRetriever(FakeEncoder(), snapshot(0), "first").find([Lookup(query="president", namespace="default")])
    assert (found.edit, found.declined, found.score) == (None, "empty_table", None)


def test_a_replica_refuses_weights_that_were_replaced_since_the_start(other_editor_dir, table_uri):
    with pytest.raises(TableError, match="fingerprint"):
        RetrieverDeployment(editor=str(other_editor_dir), table=table_uri, version=1, device="cpu", batch_wait_s=0)
