"""On a table that the release before this form of texts wrote; see tests/distributed/former."""

import shutil
import unicodedata
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from recipe_ray.facts import default_fact_id, fact_from_record
from recipe_ray.store.live.index import LiveIndex
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable, GroupId
from recipe_ray.store.upkeep.renewal import renew
from recipe_ray.store.writing import write_facts
from recipe_ray.text import canonical

FORMER = Path(__file__).parents[2] / "distributed" / "former" / "table"
SPELLINGS = ["NFC", "NFD"]


@pytest.fixture
def uri(tmp_path):
    return str(shutil.copytree(FORMER, tmp_path / "table"))


class Encoder:
    """Vectors that tell the text they are made of, in canonical form as an editor reads it."""

    def __init__(self, identity):
        self.identity, self.asked = identity, []

    def __call__(self, statements):
        self.asked += statements
        keys = np.stack([self.key(statement) for statement in statements])
        shape = (len(statements), self.identity.num_virtual_tokens, self.identity.llm_width)
        return keys, np.broadcast_to(keys[:, :1, None], shape)

    def key(self, statement):
        return np.full(self.identity.key_width, sum(canonical(statement).encode()) % 997, np.float32)


@pytest.fixture
def encode(uri):
    return Encoder(FactTable.open(uri).identity)


def told(uri):
    facts = read_snapshot(uri).facts.to_pylist()
    return {(fact["namespace"], fact["prompt"] or fact["statement"]): fact for fact in facts}


def keys_by_statement(uri):
    snapshot = read_snapshot(uri)
    return dict(zip(snapshot.facts["statement"].to_pylist(), snapshot.keys_FK[:, 0].tolist(), strict=True))


def put(uri, encode, renewal, **record):
    fact = renewal.under_its_id(fact_from_record(record, place="test"), dated=datetime.now(UTC))
    group = GroupId(writer="w", number=FactTable.open(uri).version)
    return write_facts(uri, [fact], encode, identity=encode.identity, group=group).outcomes


def test_keys_made_of_another_text_are_made_again_and_nothing_else(uri, encode):
    before, old_keys = told(uri), keys_by_statement(uri)
    renewal = renew(uri, encode)
    spelled = {statement for statement in old_keys if canonical(statement) != statement}
    assert sorted(encode.asked) == sorted(spelled)
    assert renewal.num_encoded == len(spelled) == 11
    for statement, key in keys_by_statement(uri).items():
        assert key == (encode.key(statement)[0] if statement in spelled else old_keys[statement])
    kept = told(uri)
    assert kept.items() <= before.items()
    # Of facts of one prompt the last one stays.
    by_prompt = {}
    for (_, said), fact in before.items():
        by_prompt.setdefault(canonical(said), []).append(fact["updated_at"])
    assert {canonical(said): fact["updated_at"] for (_, said), fact in kept.items()} == {
        prompt: max(times) for prompt, times in by_prompt.items()
    }
    assert len(kept) == len(by_prompt)
    assert (renewal.num_joined, renewal.version) == (len(before) - len(kept), FactTable.open(uri).version)


def test_a_second_time_there_is_nothing_to_do(uri, encode):
    first = renew(uri, encode)
    again = renew(uri, encode)
    assert (again.going_on, again.since_us) == (first.going_on, first.since_us)
    assert (again.num_encoded, again.num_joined, again.version) == (0, 0, first.version)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("prompt", ["The mayor of São Paulo is", "The capital of Perú is", "The colour of snow is"])
def test_a_fact_is_changed_and_deleted_by_its_prompt_in_either_form(uri, encode, prompt, spelling):
    renewal = renew(uri, encode)
    before = {fact["fact_id"]: fact for (_, said), fact in told(uri).items() if canonical(said) == prompt}
    (stored_id,) = before
    asked = unicodedata.normalize(spelling, prompt)
    assert put(uri, encode, renewal, prompt=asked, target="other") == ("changed",)
    assert {fact["fact_id"]: fact["target"] for (_, said), fact in told(uri).items() if canonical(said) == prompt} == {
        stored_id: "other"
    }
    assert put(uri, encode, renewal, op="delete", prompt=asked) == ("deleted",)
    assert not [said for _, said in told(uri) if canonical(said) == prompt]
    assert put(uri, encode, renewal, prompt=asked, target="again") == ("new",)
    assert [fact["fact_id"] for (_, said), fact in told(uri).items() if canonical(said) == prompt] == [stored_id]
    assert renew(uri, encode).going_on == renewal.going_on


def test_a_bare_statement_keeps_its_id_too(uri, encode):
    statement = "Zürich is larger than Genève"
    assert put(uri, encode, renew(uri, encode), op="delete", prompt=statement) == ("deleted",)
    assert statement not in {canonical(said) for _, said in told(uri)}


def test_an_id_that_says_something_else_by_now_is_left_alone(uri, encode):
    (stored_id,) = [
        fact["fact_id"] for (_, said), fact in told(uri).items() if canonical(said) == "The mayor of São Paulo is"
    ]
    nothing_known = renew(str(shutil.copytree(FORMER, Path(uri).parent / "other")), encode)
    group = GroupId(writer="w", number=1)
    other = fact_from_record({"id": stored_id, "prompt": "The mayor of Rio is", "target": "Paes"}, place="test")
    write_facts(uri, [other], encode, identity=encode.identity, group=group)
    renewal = renew(uri, encode)
    prompt = ("default", default_fact_id("default", "The mayor of São Paulo is"))
    assert prompt in nothing_known.going_on
    assert prompt not in renewal.going_on
    assert put(uri, encode, renewal, prompt="The mayor of São Paulo is", target="Nunes") == ("new",)
    assert told(uri)["default", "The mayor of Rio is"]["target"] == "Paes"


def test_a_key_that_does_not_fit_leaves_the_old_one(uri, encode):
    before = keys_by_statement(uri)
    encode.key = lambda statement: np.full(encode.identity.key_width, 1e9, np.float32)
    assert renew(uri, encode).num_encoded == 0
    assert keys_by_statement(uri).items() <= before.items()


def test_a_server_that_follows_the_table_gets_the_new_keys(uri, encode):
    identity = encode.identity
    index = LiveIndex(uri, fingerprint=identity.fingerprint)
    view = index.advance(renew(uri, encode).version)
    query_BK = np.eye(1, identity.key_width, dtype=np.float32)
    hits = view.search(query_BK, ["bank"], 1)[0]
    assert [hit.score for hit in hits] == [encode.key(view.fact_of(hits[0])["statement"])[0]]


def test_a_table_of_this_release_is_left_alone(tmp_path, encode):
    uri = str(tmp_path / "new")
    FactTable.create_or_open(uri, encode.identity)
    spelled = unicodedata.normalize("NFD", "Perú")
    fact = fact_from_record({"prompt": f"The capital of {spelled} is", "target": "Lima"}, place="test")
    write_facts(uri, [fact], encode, identity=encode.identity, group=GroupId(writer="w", number=1))
    encode.asked.clear()
    assert renew(uri, encode).version == 1
    assert not encode.asked
