"""A tiny LLM, an editor and a table of facts, all with random weights: small enough to serve within a test."""

import os
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

JOB = Path(__file__).parents[2] / "jobs" / "serve.py"
FACTS = {  # id: (statement, namespace)
    "president": ("The president of Ruritania is Ada Lund", "default"),
    "capital": ("The capital of Ruritania is Strelsau", "default"),
    "river": ("The longest river of Syldavia is the Wladir", "news"),
}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _tokenizer():
    from tiny_models import byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 96
    return tokenizer


@pytest.fixture(scope="session")
def llm_dir(tmp_path_factory):
    """A Llama of 96 tokens of context that speaks bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=96,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.5,  # far from uniform, so that prompts and prefixes change what is said
    )
    path = tmp_path_factory.mktemp("llm")
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def llm(llm_dir):
    from recipe_ray.model.llm import load_llm

    return load_llm(str(llm_dir), "cpu")


def _new_editor(llm_dir, seed):
    import torch
    from transformers import BertConfig, BertModel

    from recipe_ray.config import EditorConfig
    from recipe_ray.model.editor import Editor
    from recipe_ray.model.encoder import TextEncoder

    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    config = EditorConfig(llm=str(llm_dir), encoder="tiny", key_width=16)
    bert = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=96,
    )
    encoder = TextEncoder(BertModel(bert, add_pooling_layer=False), tokenizer, config.pooling)
    return Editor(config, encoder, llm_width=32).eval()


@pytest.fixture(scope="session")
def editor(llm_dir):
    return _new_editor(llm_dir, seed=0)


@pytest.fixture(scope="session")
def editor_dir(editor, tmp_path_factory):
    path = tmp_path_factory.mktemp("editor")
    editor.save(path)
    return path


@pytest.fixture(scope="session")
def other_editor_dir(llm_dir, tmp_path_factory):
    """An editor of the same shape and other weights."""
    path = tmp_path_factory.mktemp("other_editor")
    _new_editor(llm_dir, seed=9).save(path)
    return path


@pytest.fixture(scope="session")
def table_uri(editor, tmp_path_factory):
    """FACTS, encoded by `editor`."""
    from recipe_ray.store.parquet import write_events
    from recipe_ray.store.schema import EVENT_SCHEMA, shard_of, vectors_to_cells
    from recipe_ray.store.table import FactTable

    table = FactTable.create_or_open(str(tmp_path_factory.mktemp("facts")), editor.identity())
    keys_FK, prompts_FPD = editor.encode_facts([statement for statement, _ in FACTS.values()])
    rows = len(FACTS)
    columns = {
        "namespace": [namespace for _, namespace in FACTS.values()],
        "shard": [shard_of(fact_id, table.num_shards) for fact_id in FACTS],
        "fact_id": list(FACTS),
        "op": ["upsert"] * rows,
        "statement": [statement for statement, _ in FACTS.values()],
        "prompt": [""] * rows,
        "target": [""] * rows,
        "subject": [""] * rows,
        "source": ["gazette"] * rows,
        "updated_at": [NOW] * rows,
        "expires_at": [None] * rows,
        "ingested_at": [NOW] * rows,
        "content_hash": [fact_id.encode().ljust(16) for fact_id in FACTS],
        "statement_hash": [fact_id.encode().ljust(16) for fact_id in FACTS],
        "encoded": [True] * rows,
        "key": vectors_to_cells(keys_FK, table.dtype),
        "prompt_embeddings": vectors_to_cells(prompts_FPD.reshape(rows, -1), table.dtype),
    }
    table.commit(write_events(table.uri, pa.table(columns, schema=EVENT_SCHEMA)), dump_hash="dump", counts={})
    return table.uri


@pytest.fixture(scope="session")
def server_url(ray_cluster, editor_dir, table_uri, tmp_path_factory):
    """The whole application over real HTTP, with its own copy of the table, which tests write to.

    It is jobs/serve.py as a user runs it: it must say where it listens, and end well once it is told to stop. One for
    all tests that want it, on one process of xdist: a start takes half a minute on two cores.
    """
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(table_uri, folder / "table")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    flags = {
        "editor": editor_dir,
        "table": folder / "table",
        "model-name": "tiny",
        "cpus": 0.5,
        "num-retrievers": 1,
        "retriever-cpus": 0.2,
        "num-index-shards": 2,
        "port": url.rpartition(":")[2],
    }
    with (folder / "complaints").open("w") as complaints:
        process = subprocess.Popen(
            [sys.executable, str(JOB), *(str(part) for name, value in flags.items() for part in (f"--{name}", value))],
            env={**os.environ, "RAY_ADDRESS": ray_cluster},
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        )
    try:
        said = next((line for line in process.stdout if line.startswith("serving ")), None)
        assert said is not None, (folder / "complaints").read_text()[-3000:]
        assert f"{url}/v1 " in said
        assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
        yield url
        process.terminate()  # handled as Ctrl-C is
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 0
        assert "stopped" in rest
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
