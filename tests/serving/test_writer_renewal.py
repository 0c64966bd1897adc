"""The writer brings a table of an older release to the canonical form of texts before it writes."""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_writer import IDENTITY, put, run, until

from recipe_ray.errors import TableError
from recipe_ray.facts import default_fact_id, fact_from_record
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable
from recipe_ray.store.upkeep.maintenance import rollback
from recipe_ray.text import canonical
from serving import group_writer as module


@pytest.fixture
def uri(tmp_path):
    return FactTable.create_or_open(str(tmp_path / "table"), IDENTITY).uri


def is_renewed(uri, version=None):
    """Whether no prompt stands in two spellings, and every spelled statement has a key of `encode`'s."""
    snapshot = read_snapshot(uri, version)
    facts = snapshot.facts.to_pylist()
    prompts = [canonical(fact["prompt"] or fact["statement"]) for fact in facts]
    is_spelled = [canonical(fact["statement"]) != fact["statement"] for fact in facts]
    return len(set(prompts)) == len(prompts) and bool((snapshot.keys_FK[is_spelled] == 1).all())


def test_a_table_of_the_release_before_is_renewed_and_its_facts_go_on_under_their_ids(tmp_path):
    former = Path(__file__).parents[1] / "distributed" / "former" / "table"
    uri = str(shutil.copytree(former, tmp_path / "former"))
    identity = FactTable.open(uri).identity
    stored = {canonical(fact["prompt"]): fact["fact_id"] for fact in read_snapshot(uri).facts.to_pylist()}
    encoded = []

    def encode(statements):
        encoded.extend(map(canonical, statements))
        shape = (len(statements), identity.num_virtual_tokens, identity.llm_width)
        return np.ones((len(statements), identity.key_width), np.float32), np.ones(shape, np.float32)

    mayor = fact_from_record({"prompt": "The mayor of São Paulo is", "target": "Tarcísio"}, place="test")

    async def scenario(writer):
        await writer.current_version()
        await until(lambda: writer._version > 1)  # by itself, before anything is written
        num_renewed = len(encoded)
        written = await writer.write([mayor, fact_from_record({"prompt": "Ada is", "target": "a poet"}, place="test")])
        await writer.activate(1)  # with the keys that it had then
        await until(lambda: is_renewed(uri))
        undone = await asyncio.to_thread(rollback, uri, 1)  # by another process
        assert not is_renewed(uri, undone.version)
        await until(lambda: is_renewed(uri))
        return num_renewed, written

    num_renewed, written = run(uri, scenario, encoder=encode, identity=identity)
    assert num_renewed == 11
    assert written.outcomes == ("changed", "new")
    assert written.fact_ids == (stored["The mayor of São Paulo is"], default_fact_id("default", "Ada is"))
    assert "The mayor of São Paulo is Tarcísio" in encoded


def test_a_renewal_that_fails_is_made_up_for_by_the_next_write(uri, monkeypatch, caplog):
    renew, calls = module.renew, []

    def fail_once(*given):
        calls.append(given)
        if len(calls) == 1:
            raise TableError("the storage is away")
        return renew(*given)

    monkeypatch.setattr(module, "renew", fail_once)

    async def scenario(writer):
        await writer.current_version()
        await until(lambda: calls)
        return await writer.write([put("a")])

    with caplog.at_level("WARNING", logger="ray.serve"):
        assert run(uri, scenario).outcomes == ("new",)
    assert len(calls) == 2
    assert "what an older release left in the table is not renewed yet: the storage is away" in caplog.text
