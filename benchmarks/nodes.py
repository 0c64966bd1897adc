r"""What several nodes cost or gain beside one of as many CPUs: training, ingest, serving.

    python benchmarks/nodes.py --num-steps 40 --num-facts 20000 --seconds 20 --rounds 3

Each is run on a Ray cluster of nodes that are processes of this machine (recipe_ray/distributed/local_nodes.py), in
turns on one node and on several of together as many CPUs. CPUs are what Ray is told: on a machine of two cores nothing
can become faster by more nodes, and the ratios say what is lost between them; over a real network it is more. The last
line is one JSON object with the figures of every round and, in `ratio`, the mean over several nodes by that over one:

`training`: steps a second of two workers (the testbed's set-up, without its warm start; start-up left out), on one node
of two CPUs and on two of one. `ingest`: facts a second into a new table, on one node of three CPUs and on three of one.
`serving`: answered completions a second of eight clients, with both parts of the index on one node of four CPUs and on
two of two.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import ray

from recipe_ray.distributed.cluster import connect
from recipe_ray.distributed.ingest import ingest
from recipe_ray.distributed.ingest_args import IngestConfig
from recipe_ray.distributed.local_nodes import local_nodes
from recipe_ray.distributed.train import train_editor
from recipe_ray.distributed.train_args import TrainArgs
from recipe_ray.testbed.million import generate_facts
from serving.local import serving
from serving.settings import AppArgs

NUM_PARTS = 2
NUM_CLIENTS = 8
NUM_NEW_TOKENS = 16
WARM_S = 3.0
LAYOUTS: dict[str, dict[str, tuple[float, ...]]] = {  # CPUs of the nodes
    "training": {"one_node": (2,), "several_nodes": (1, 1)},
    "ingest": {"one_node": (3,), "several_nodes": (1, 1, 1)},
    "serving": {"one_node": (4,), "several_nodes": (2, 2)},
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-steps", type=int, default=40, help="of each training")
    parser.add_argument("--num-facts", type=int, default=20_000, help="of each ingest")
    parser.add_argument("--seconds", type=float, default=20.0, help="of load on each server")
    parser.add_argument("--rounds", type=int, default=2, help="each on one node and on several")
    args = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory(prefix="nodes-") as name:
        bench = Bench(Path(name), args)
        measures: dict[str, Callable[[str], float]] = {
            "training": bench.steps_per_s,
            "ingest": bench.facts_per_s,
            "serving": bench.answers_per_s,
        }
        result = {what: compared(what, measure, args.rounds) for what, measure in measures.items()}
    print(
        json.dumps(
            {
                **result,
                "layouts": LAYOUTS,
                "num_steps": args.num_steps,
                "num_facts": args.num_facts,
                "seconds": args.seconds,
                "cores": os.cpu_count(),
                "device": f"CPU ({platform.machine()})",
                "versions": {"python": platform.python_version(), "ray": ray.__version__},
            }
        )
    )


def compared(what: str, measure: Callable[[str], float], num_rounds: int) -> dict[str, Any]:
    """Measure in turns on one node and on several."""
    found: dict[str, list[float]] = {layout: [] for layout in LAYOUTS[what]}
    for number, layout in itertools.product(range(num_rounds), found):
        with joined(LAYOUTS[what][layout]):
            found[layout].append(measure(f"{layout}-{number}"))
        print(json.dumps({what: found}), flush=True)
    return {**found, "ratio": statistics.mean(found["several_nodes"]) / statistics.mean(found["one_node"])}


@contextmanager
def joined(cpus: tuple[float, ...]) -> Iterator[None]:
    """Join a cluster of such nodes; on several, each has room for one part of an index."""
    with local_nodes(cpus, resources={"index": NUM_PARTS / min(NUM_PARTS, len(cpus))}) as nodes:
        os.environ["RAY_ADDRESS"] = nodes.address
        connect(bulk=True)
        try:
            yield
        finally:
            ray.shutdown()
            del os.environ["RAY_ADDRESS"]


class Bench:
    """The measurements; the first training's editor ingests and serves, the first table is served."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder = folder
        self.args = args
        self.editor = ""
        self.table = ""
        self.facts = list(generate_facts(args.num_facts, seed=0))
        self.dump = folder / "dump.jsonl"
        self.dump.write_text("".join(f"{json.dumps(fact)}\n" for fact in self.facts))

    def steps_per_s(self, name: str) -> float:
        """Of a training with two workers of one CPU each."""
        wanted = TrainArgs(
            run=name,
            storage=str(self.folder / "runs"),
            num_steps=self.args.num_steps,
            num_workers=2,
            device="cpu",
            set=("cpus_per_worker=1", "num_warm_start=0"),
        )
        config = wanted.config()
        report = train_editor(config, run=name, storage=wanted.storage, output=wanted.output_folder)
        self.editor = self.editor or report.editor
        return report.edits_per_s / config.batch_size

    def facts_per_s(self, name: str) -> float:
        """Of an ingest into a new table."""
        config = IngestConfig(
            source=str(self.dump), table=str(self.folder / f"table-{name}"), editor=self.editor, device="cpu"
        )
        report = ingest(config)
        self.table = self.table or report.table
        return report.facts_per_s

    def answers_per_s(self, name: str) -> float:
        """Of a server whose index is in two parts."""
        app = AppArgs(
            editor=self.editor,
            table=self.table,
            device="cpu",
            num_index_shards=NUM_PARTS,
            shard_resources={"index": 1},
        )
        with serving(app, port=0, quiet=True) as url:
            return asyncio.run(self._load(url))

    async def _load(self, url: str) -> float:
        prompts = itertools.cycle(fact["prompt"] for fact in self.facts)
        answered: list[float] = []

        async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:

            async def one_client(until: float) -> None:
                while time.perf_counter() < until:
                    body = {"prompt": next(prompts), "max_tokens": NUM_NEW_TOKENS, "ignore_eos": True}
                    (await client.post("/v1/completions", json=body)).raise_for_status()
                    answered.append(time.perf_counter())

            for seconds in (WARM_S, self.args.seconds):
                answered.clear()
                begun = time.perf_counter()
                await asyncio.gather(*(one_client(begun + seconds) for _ in range(NUM_CLIENTS)))
        return len(answered) / (max(answered) - begun)


if __name__ == "__main__":
    main()
