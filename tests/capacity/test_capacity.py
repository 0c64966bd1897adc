"""The capacity plan: what it says of bytes is what files take, it grows with what is asked, and its sums are sums."""

import json
import math
import sys
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import capacity as job
from jobs._cli import run
from recipe_ray.capacity import constants
from recipe_ray.capacity.config import CapacityConfig
from recipe_ray.capacity.constants import GIB, LLMS
from recipe_ray.capacity.plan import fact_bytes, plan
from recipe_ray.capacity.table import as_json, rows, seconds, size
from recipe_ray.config import EditorIdentity
from recipe_ray.errors import ConfigError
from recipe_ray.facts import fact_from_record
from recipe_ray.model.llm import llm_width
from recipe_ray.presets import PRESETS
from recipe_ray.store.indexes.artefacts import build_index
from recipe_ray.store.indexes.tuning import DEFAULT_EXACT_BELOW, IndexSettings
from recipe_ray.store.parquet import write_events
from recipe_ray.store.schema import EVENT_SCHEMA
from recipe_ray.store.table import FactTable
from recipe_ray.testbed.million import generate_facts

NUM_FACTS = 3000
KEY_WIDTH, VIRTUAL_TOKENS, WIDTH = 64, 3, 32
TEXTS = ("fact_id", "namespace", "statement", "prompt", "target", "subject", "source")
CUSTOM = {"llm": "custom", "llm_layers": 2, "llm_kv_width": WIDTH, "llm_parameters": 1e6}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A table of one shard with vectors that do not compress, and the bytes of its texts a fact."""
    rng = np.random.default_rng(0)
    identity = EditorIdentity(
        fingerprint="f00d",
        encoder="an encoder",
        llm="an llm",
        llm_width=WIDTH,
        key_width=KEY_WIDTH,
        num_virtual_tokens=VIRTUAL_TOKENS,
        sentinel_K=np.zeros(KEY_WIDTH, np.float32),
    )
    table = FactTable.create_or_open(str(tmp_path_factory.mktemp("plan") / "table"), identity, num_shards=1)
    facts = [fact_from_record(record, place="here") for record in generate_facts(NUM_FACTS, 0)]
    keys_FK = rng.normal(size=(NUM_FACTS, KEY_WIDTH))
    keys_FK /= np.linalg.norm(keys_FK, axis=1, keepdims=True)
    events = [
        {name: getattr(fact, name, None) for name in EVENT_SCHEMA.names}
        | {
            "shard": 0,
            "updated_at": 0,
            "ingested_at": 0,
            "content_hash": fact.content_hash(),
            "statement_hash": fact.statement_hash(),
            "encoded": True,
            "key": key_K.astype("<f2").tobytes(),
            "prompt_embeddings": rng.normal(size=VIRTUAL_TOKENS * WIDTH).astype("<f2").tobytes(),
        }
        for fact, key_K in zip(facts, keys_FK, strict=True)
    ]
    table.commit(write_events(table.uri, pa.Table.from_pylist(events, EVENT_SCHEMA)), dump_hash="d", counts={})
    texts = sum(len(str(getattr(fact, name) or "").encode()) for fact in facts for name in TEXTS)
    return table, round(texts / NUM_FACTS)


def small_config(text_bytes, **changes):
    return CapacityConfig(
        **{
            **CUSTOM,
            "facts": NUM_FACTS,
            "llm_width": WIDTH,
            "key_width": KEY_WIDTH,
            "num_virtual_tokens": VIRTUAL_TOKENS,
            "text_bytes": text_bytes,
            **changes,
        }
    )


def test_bytes_of_the_table_are_those_of_its_files(stored):
    table, text_bytes = stored
    written = sum(file.size_bytes for file in table.files())
    assert plan(small_config(text_bytes)).storage.table == pytest.approx(written, rel=0.03)


@pytest.mark.parametrize(("kind", "num_dimensions"), [("exact", None), ("hnsw", 16)])
def test_bytes_of_an_index_are_those_of_its_files(stored, kind, num_dimensions):
    table, text_bytes = stored
    build = IndexSettings(kind=kind, num_dimensions=num_dimensions, min_recall=0.0)
    (part,) = build_index(table.uri, settings=build).parts
    said = fact_bytes(small_config(text_bytes, index_kind=kind, index_dimensions=num_dimensions), kind=kind)
    sizes = {name: file.size_bytes / NUM_FACTS for name, file in part.files.items()}
    assert said.key == pytest.approx(sizes["npy"], rel=0.01)
    assert said.index == pytest.approx(sizes["faiss"], rel=0.03)
    assert said.row == pytest.approx(sizes["arrow"], rel=0.03)


def test_a_case_by_hand():
    found = plan(
        CapacityConfig(
            **CUSTOM | {"llm_layers": 10, "llm_kv_width": 1000, "llm_parameters": 1e9},
            llm_width=1000,
            facts=1_000_000,
            key_width=512,
            num_virtual_tokens=4,
            index_kind="hnsw",
            index_dimensions=128,
            text_bytes=100,
            delta=0.0,
            prompt_tokens=96,
            answer_tokens=100,
            requests_per_s=1000.0,
            utilisation=0.5,
            latency_s=1000.0,
            max_batch_size=1,
            gpu_bandwidth_gb_s=1000.0,
            gpu_tflops=1000.0,
            network_gbit_s=8.0,
        )
    )
    assert (found.fact.key, found.fact.prompt, found.fact.row) == (1024, 8000, 8000 + 100 + 45)
    assert found.fact.searched == 1024 + 2 * 128 + 272
    assert found.index.memory_per_replica == GIB + 1e6 * (2 * (1024 + 256 + 272) + 100)
    assert found.storage.table == 1e6 * (9024 + 36 + 0.35 * 100)
    # Weights of 2 GB at 600 GB/s: 96 + 4 tokens are read as fast as the weights pass. A step reads them, and 8 MB of
    # keys and values, in 3.3 ms, but launching the kernels of ten layers takes 6.5.
    cycle_s = (2e9 / 600e9 + 100 * 10 * 0.00065) / 0.96
    assert found.engines.requests_per_s == pytest.approx(1 / cycle_s)
    assert found.engines.num_engines == math.ceil(1000 * cycle_s / 0.5)
    assert found.warm_start.seconds == pytest.approx(1e6 * (found.fact.searched + found.fact.row) / 0.7e9)


def test_what_was_measured_comes_out_again():
    measured = CapacityConfig(llm="testbed", statement_tokens=15, ingest_cpus=2, node_cpus=2, network_gbit_s=1e6)
    found = plan(measured).nightly
    assert found.full_ingest * 3600 == pytest.approx(550, rel=0.1)
    assert found.delta_ingest * 3600 == pytest.approx(12.6, rel=0.25)
    assert found.index * 3600 == pytest.approx(209, rel=0.05)


def needs(found):
    """What a plan takes, each a number that may not fall where more is asked."""
    said = as_json(CapacityConfig(), found)
    return {
        "storage": found.storage.total,
        "memory": found.total_memory,
        "shards": found.index.num_shards,
        "gpus": found.engines.total_gpus,
        "cpus": found.retrieval.total_cpus,
        "night": found.nightly.full_ingest,
        "network": said["warm_start"]["total"],
    }


@settings(max_examples=150, deadline=None)
@given(
    few=st.integers(1, 10**9),
    more=st.integers(1, 10**9),
    llm=st.sampled_from(sorted(LLMS)),
    kind=st.sampled_from(["auto", "exact", "hnsw"]),
)
def test_more_facts_never_need_less(few, more, llm, kind):
    config = CapacityConfig(
        facts=min(few, more), llm=llm, index_kind=kind, latency_s=10_000.0, requests_per_s=0.001, node_memory_gib=64.0
    )
    less, rest = needs(plan(config)), needs(plan(replace(config, facts=max(few, more))))
    for name in ("storage", "memory", "shards", "night"):
        assert rest[name] >= less[name] * (1 - 1e-9), name


@pytest.mark.parametrize(
    ("name", "more", "grows"),
    [
        ("requests_per_s", 10_000.0, ("gpus", "cpus", "memory", "network")),
        ("answer_tokens", 64, ("gpus",)),
        ("key_width", 8192, ("storage", "memory", "night")),
        ("num_virtual_tokens", 30, ("storage", "night", "network")),
        ("llm_dtype", "float32", ("network",)),
        ("history_days", 60, ("storage",)),
    ],
)
def test_what_asks_more_takes_more(name, more, grows):
    base = CapacityConfig(requests_per_s=200.0)
    less, rest = needs(plan(base)), needs(plan(replace(base, **{name: more})))
    for what in grows:
        assert rest[what] > less[what], what


@pytest.mark.parametrize("facts", [1, 19_999, 1_000_000, 10**9])
def test_totals_are_the_sums_of_their_parts(facts):
    config = CapacityConfig(facts=facts, requests_per_s=500.0)
    found = plan(config)
    said = as_json(config, found)
    for part in ("storage", "warm_start"):
        own = [field.name for field in fields(getattr(found, part)) if field.name != "seconds"]
        assert said[part]["total"] == pytest.approx(sum(said[part][name] for name in own))
    index, engines, retrieval = said["index"], said["engines"], said["retrieval"]
    assert index["table_shards"] * index["facts_per_part"] >= facts
    assert index["total_memory"] == index["num_shards"] * index["shard_replicas"] * index["memory_per_replica"]
    assert engines["total_gpus"] == engines["num_engines"] * engines["gpus_per_engine"] == said["totals"]["gpus"]
    assert said["totals"]["cpus"] == sum(each["total_cpus"] for each in (index, engines, retrieval))
    assert said["totals"]["memory"] == index["total_memory"] + retrieval["total_memory"]


@pytest.mark.parametrize("facts", [1_000_000, 10**9])
def test_no_replica_is_asked_for_more_than_its_machine_has(facts):
    config = CapacityConfig(facts=facts, requests_per_s=5000.0)
    found = plan(config)
    assert found.index.memory_per_replica <= config.node_memory_gib * GIB * config.node_memory_share * 1.001
    assert found.index.cpus_per_replica <= config.node_cpus
    assert found.engines.memory_per_gpu <= config.gpu_card.memory_gb * 1e9
    assert found.engines.answer_s <= config.latency_s
    able = found.engines.num_engines * found.engines.requests_per_s * config.utilisation
    assert able >= config.requests_per_s


def test_an_llm_beyond_one_gpu_is_spread_over_several():
    large = CapacityConfig(
        llm="custom", llm_width=8192, llm_layers=80, llm_kv_width=1024, llm_parameters=70.6e9, latency_s=10.0
    )
    found = plan(large)
    assert found.engines.gpus_per_engine == 4
    assert found.engines.memory_per_gpu * 4 > 141e9
    assert any("tensor_parallel" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"facts": 0}, "facts is 0; give 1 or more"),
        ({"requests_per_s": math.inf}, "requests_per_s is inf; give a number above 0"),
        ({"delta": 1.5}, "delta is 1.5; give a share from 0 to 1"),
        ({"utilisation": 0.0}, "utilisation is 0; give a share above 0 to 1"),
        ({"llm": "gpt-9"}, "llm is 'gpt-9'; give one of .*custom"),
        ({"llm": "custom", "llm_width": 8}, "llm is custom, but llm_layers is not given"),
        ({"llm_width": 8}, "llm is llama-3.1-8b and llm_width is given; give llm custom"),
        ({"index_kind": "exact", "index_dimensions": 8}, "index_kind is exact and index_dimensions is 8"),
        ({"index_dimensions": 2048}, "index_dimensions is 2048, but key_width is 1024"),
    ],
)
def test_what_cannot_be_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        CapacityConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latency_s": 0.06}, "latency_s is 0.06, but the retrieval alone takes"),
        ({"latency_s": 0.1}, "latency_s is 0.1, but an answer of 32 tokens takes .* alone on 8 GPUs"),
        ({"gpu": "l4", "gpu_memory_gb": 1.0}, "llm needs 16 GB for its weights and one request, and 8 GPUs have 7"),
        ({"node_memory_gib": 1.0}, "node_memory_gib is 1, of which 0.8 are for the index"),
    ],
)
def test_what_no_number_of_machines_does_is_told(changes, said):
    with pytest.raises(ConfigError, match=said):
        plan(CapacityConfig(**changes))


def test_every_preset_with_an_llm_of_its_own_can_be_planned():
    assert set(LLMS) == set(PRESETS) - {"smoke", "small"}
    for name in LLMS:
        plan(CapacityConfig(llm=name, latency_s=100.0))
    assert LLMS["testbed"].width == llm_width("testbed")
    assert constants.EXACT_BELOW == DEFAULT_EXACT_BELOW


def test_units():
    assert [size(value) for value in (12, 2_500, 3e6, 4e9, 5.04e12, 6e15)] == [
        "12 B",
        "2.5 kB",
        "3.0 MB",
        "4.0 GB",
        "5.0 TB",
        "6.0 PB",
    ]
    assert [seconds(value) for value in (0.0123, 1.5, 60)] == ["12.3 ms", "1.50 s", "60.0 s"]
    config = CapacityConfig()
    assert all(row.value[-1:].isalnum() for row in rows(config, plan(config)))


def test_the_job_prints_a_table_or_json_or_one_line(monkeypatch, capsys):
    def start(*flags):
        monkeypatch.setattr(sys, "argv", ["capacity.py", *flags])
        with pytest.raises(SystemExit) as caught:
            run(job.main, CapacityConfig)
        said = capsys.readouterr()
        return caught.value.code, said.out, said.err

    status, output, _ = start("--facts", "1000000000", "--requests-per-s", "100000")
    assert status == 0
    assert "index shards" in output
    assert "extrapolated" in output
    status, output, _ = start("--json")
    assert json.loads(output)["config"]["facts"] == 1_000_000
    assert start("--delta", "2")[::2] == (1, "error: delta is 2; give a share from 0 to 1\n")
    assert start("--fact", "2")[0] == 64
