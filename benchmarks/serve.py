r"""What retrieval and editing cost a server, under load, by clients and by facts.

    python benchmarks/serve.py --editor EDITOR                                       # 0 and 10,000 facts
    python benchmarks/serve.py --editor EDITOR --num-facts 0 10000 1000000 --folder FOLDER

For every number of facts a table is filled (kept below --folder for the next run; an index is built beside a large one)
and the application is started on a Ray cluster of this machine. Clients then ask, each its next question as soon as the
last is answered: questions never asked before, of which half are about stored facts; 32 tokens, which the end of a
text does not shorten. Four kinds of requests take turns, a slice of time each: `edited`; `off` (no encoder, no index:
`recipe.edits` false), which `edited` is held against; `retrieve` (the retrieval step alone); and `pasted`, unedited
with the statement of a fact before the question, as retrieval by text would have it. The last line is one JSON object:
`throughput_ratio` is the smallest of edited over off requests a second, over all cells.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ray

from recipe_ray.distributed.cluster import connect
from recipe_ray.distributed.ingest import ingest
from recipe_ray.distributed.ingest_args import IngestConfig
from recipe_ray.model.editor import load_editor
from recipe_ray.store.indexes.artefacts import build_index, latest_index
from recipe_ray.store.table import FactTable
from recipe_ray.testbed.million import generate_facts, generate_questions
from serving.local import serving
from serving.settings import AppArgs

KINDS = ("edited", "off", "pasted", "retrieve")
NUM_TOKENS = 32
INDEXED_FROM = 20_000  # facts: below, a server reads the table
QUESTIONS = 40_000
WARM_UP = 2048  # questions looked up before anything is measured: a mapped index is read from disk as it is asked


@dataclass
class Tally:
    """Answers of one kind of request in one cell."""

    num_slices: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    num_edited: int = 0
    rates: list[float] = field(default_factory=list)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor", required=True, help="directory of a trained editor")
    parser.add_argument("--num-facts", type=int, nargs="+", default=[0, 10_000])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--slice-s", type=float, default=4.0, help="seconds of one kind before the next has its turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every kind in a cell")
    parser.add_argument("--num-index-shards", type=int, default=0)
    parser.add_argument("--num-retrievers", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep tables here")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="serve-"))
    cells: dict[str, Any] = {}
    for num_facts in args.num_facts:
        table = filled_table(folder, args.editor, num_facts)
        connect(num_cpus=max(4, os.cpu_count() or 1))
        try:
            app = AppArgs(
                editor=args.editor,
                table=table,
                num_index_shards=args.num_index_shards,
                num_retrievers=args.num_retrievers,
            )
            with serving(app, port=0, quiet=True) as url:
                questions = unasked(num_facts)
                warm_up(url, questions)
                for clients in args.clients:
                    cell = asyncio.run(measure(url, clients, questions, slice_s=args.slice_s, rounds=args.rounds))
                    cells[f"{num_facts} facts, {clients} clients"] = cell
                    print(json.dumps({f"{num_facts} facts, {clients} clients": cell}), flush=True)
        finally:
            ray.shutdown()
    if args.folder is None:
        shutil.rmtree(folder)
    print(
        json.dumps(
            {
                "throughput_ratio": min(cell["throughput_ratio"] for cell in cells.values()),
                "cells": cells,
                "num_tokens": NUM_TOKENS,
                "rounds": args.rounds,
                "num_index_shards": args.num_index_shards,
                "cores": os.cpu_count(),
                "device": f"CPU ({platform.machine()})",
                "versions": {"python": platform.python_version(), "ray": ray.__version__},
            }
        )
    )


def filled_table(folder: Path, editor: str, num_facts: int) -> str:
    """A table of so many invented facts, with an index where it is large."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f"table-{num_facts}"
    if not (table / "_delta_log").exists():
        if num_facts:
            dump = folder / f"{num_facts}.jsonl"
            dump.write_text("".join(json.dumps(fact) + "\n" for fact in generate_facts(num_facts, seed=0)))
            connect(bulk=True)
            try:
                ingest(IngestConfig(source=str(dump), table=str(table), editor=editor))
            finally:
                ray.shutdown()
        else:
            FactTable.create_or_open(str(table), load_editor(editor, "cpu").identity())
    if num_facts >= INDEXED_FROM and latest_index(str(table)) is None:
        build_index(str(table), encode_queries=load_editor(editor, "cpu").encode_queries)
    return str(table)


def unasked(num_facts: int) -> Iterator[tuple[str, str]]:
    """Questions, each once, with a statement to paste before each; without facts all are about nothing stored."""
    facts = [f"{fact['prompt']} {fact['target']}" for fact in generate_facts(1000, seed=0)]
    questions = generate_questions(num_facts, min(QUESTIONS, 2 * num_facts or QUESTIONS), seed=0)
    return zip((question.text for question in questions), itertools.cycle(facts), strict=False)


def warm_up(url: str, questions: Iterator[tuple[str, str]]) -> None:
    """Look many questions up."""
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        for _ in range(WARM_UP // 64):
            queries = [question for question, _ in itertools.islice(questions, 64)]
            client.post("/v1/retrieve", json={"queries": queries}).raise_for_status()


async def measure(
    url: str, clients: int, questions: Iterator[tuple[str, str]], *, slice_s: float, rounds: int
) -> dict[str, Any]:
    """One cell: every kind in turn, by so many clients at once."""
    tallies = {kind: Tally() for kind in KINDS}
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=limits) as client:
        for kind in KINDS:  # the first answers warm up
            await asyncio.gather(*(ask(client, kind, *next(questions)) for _ in range(clients)))
        for number in range(rounds):
            order = KINDS if number % 2 else KINDS[::-1]
            for kind in order:
                await one_slice(client, kind, clients, questions, tallies[kind], slice_s)
    edited, off, pasted, retrieve = (tallies[kind] for kind in KINDS)
    ratio = statistics.median(one / other for one, other in zip(edited.rates, off.rates, strict=True))
    return {
        "throughput_ratio": ratio,
        "over_pasted": statistics.median(one / other for one, other in zip(edited.rates, pasted.rates, strict=True)),
        "edited_share": edited.num_edited / max(1, len(edited.latencies)),
        "retrieval_share_of_a_request": statistics.median(retrieve.latencies) / statistics.median(edited.latencies),
        **{
            kind: {
                "requests": len(tally.latencies),
                "requests_per_s": len(tally.latencies) / tally.seconds,
                "p50_s": float(np.quantile(tally.latencies, 0.5)),
                "p99_s": float(np.quantile(tally.latencies, 0.99)),
            }
            for kind, tally in tallies.items()
        },
    }


async def one_slice(
    client: httpx.AsyncClient,
    kind: str,
    clients: int,
    questions: Iterator[tuple[str, str]],
    tally: Tally,
    slice_s: float,
) -> None:
    """Clients ask for `slice_s` seconds; what they have begun by then counts, and so does its time."""
    begun = time.perf_counter()
    answered = 0

    async def one_client() -> None:
        nonlocal answered
        while time.perf_counter() - begun < slice_s:
            question, statement = next(questions)
            at = time.perf_counter()
            edited = await ask(client, kind, question, statement)
            tally.latencies.append(time.perf_counter() - at)
            tally.num_edited += edited
            answered += 1

    await asyncio.gather(*(one_client() for _ in range(clients)))
    seconds = time.perf_counter() - begun
    tally.seconds += seconds
    tally.rates.append(answered / seconds)


async def ask(client: httpx.AsyncClient, kind: str, question: str, statement: str) -> bool:
    """One request; whether a fact was applied."""
    if kind == "retrieve":
        response = await client.post("/v1/retrieve", json={"query": question})
        response.raise_for_status()
        return False
    body: dict[str, Any] = {"prompt": question, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
    if kind == "pasted":
        body["prompt"] = f"{statement}. {question}"
    if kind != "edited":
        body["recipe"] = {"edits": False}
    response = await client.post("/v1/completions", json=body)
    response.raise_for_status()
    answer = response.json()
    if answer["usage"]["completion_tokens"] != NUM_TOKENS:
        raise RuntimeError(f"{answer['usage']['completion_tokens']} tokens came, not {NUM_TOKENS}")
    return bool(answer["choices"][0]["recipe"]["facts"])


if __name__ == "__main__":
    main()
