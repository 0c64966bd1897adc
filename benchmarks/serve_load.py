r"""A server under load while facts are committed, versions are swapped and processes are killed.

    python benchmarks/serve_load.py --editor EDITOR --seconds 180 --swap-s 8

Clients ask two questions a request, about two facts that are always written together, in two parts of the index:
`source` of both says which write it was. First they ask in peace, for a third of the time; then while both facts are
put every second, an earlier version is made current every `--swap-s` seconds, and one engine and one index shard are
killed with SIGKILL. In between, in peace still, both facts are put `--writes` times and looked up without pause, over
all ingresses. The last line is one JSON object:

`errors` by status and code (each must say that it may be tried again), `unclear` those that do not, `mixed` answers of
two versions (must be 0), `p99_ratio` of the second time, less what began within `--kill-window-s` after a kill, to the
first, and `memory_ratio` of all processes at the last swap to the second one.
"""

import argparse
import asyncio
import collections
import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import ray

from recipe_ray.distributed.cluster import connect
from recipe_ray.model.editor import load_editor
from recipe_ray.store.schema import shard_of
from recipe_ray.store.table import DEFAULT_NUM_SHARDS, FactTable
from recipe_ray.testbed.million import generate_facts
from serving.local import serving
from serving.settings import AppArgs

NUM_SHARDS = 2
NUM_CANDIDATES = 400
MAX_TOKENS = 8
APP = "ray::ServeReplica:recipe:"


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it was sent, how long it took, what came."""

    at_s: float
    seconds: float
    status: int
    code: str
    clear: bool
    writes: frozenset[str]
    snapshots: frozenset[int]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor", required=True, help="directory of an editor")
    parser.add_argument("--seconds", type=float, default=180.0, help="of unrest; a third of that in peace before")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--swap-s", type=float, default=20.0, help="seconds between two swaps")
    parser.add_argument("--writes", type=int, default=100, help="whose way to the answers is timed")
    parser.add_argument("--num-ingresses", type=int, default=2)
    parser.add_argument("--kill-window-s", type=float, default=30.0, help="after a kill, left out of the p99")
    args = parser.parse_args()
    connect(num_cpus=max(4, os.cpu_count() or 1))
    try:
        with tempfile.TemporaryDirectory(prefix="serve-load-") as folder:
            table = str(Path(folder) / "table")
            FactTable.create_or_open(table, load_editor(args.editor, "cpu").identity())
            app = AppArgs(
                editor=args.editor,
                table=table,
                num_engines=2,
                cpus=0.5,
                num_index_shards=NUM_SHARDS,
                num_ingresses=args.num_ingresses,
                max_batch_size=16,
            )
            with serving(app, port=0, quiet=True) as url:
                print(json.dumps(asyncio.run(Load(url, args).run())))
    finally:
        ray.shutdown()


class Load:
    """The clients, the writer, the swapper and the killer."""

    def __init__(self, url: str, args: argparse.Namespace) -> None:
        self.args = args
        limits = httpx.Limits(max_connections=args.clients + 4)
        self.client = httpx.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=limits)
        self.answers: list[Answer] = []
        self.facts: list[dict[str, str]] = []
        self.prompts: list[str] = []
        self.kills: list[float] = []
        self.memory: list[int] = []
        self.num_writes = 0
        self.write_errors: collections.Counter[str] = collections.Counter()

    async def run(self) -> dict[str, Any]:
        """Peace, then unrest; what came of it."""
        async with self.client:
            await self.choose()
            await self.ask_for(5.0)  # warm
            self.answers.clear()
            await self.ask_for(self.args.seconds / 3)
            peace, self.answers = self.answers, []
            visible = await self.watch_writes()
            stop = asyncio.Event()
            others = [asyncio.create_task(task(stop)) for task in (self.keep_writing, self.keep_swapping, self.kill)]
            await self.ask_for(self.args.seconds)
            stop.set()
            await asyncio.gather(*others)
        return {**self.result(peace, self.answers), **visible}

    async def choose(self) -> None:
        """Find two facts in two parts of the index that fire for their own prompts."""
        candidates = list(generate_facts(NUM_CANDIDATES, seed=0))
        firing: dict[int, tuple[dict[str, str], str]] = {}
        for start in range(0, NUM_CANDIDATES, 50):
            some = candidates[start : start + 50]
            (await self.client.put("/v1/facts", json={"facts": some})).raise_for_status()
        for fact in candidates:
            for query in (fact["prompt"], f"{fact['prompt']} {fact['target']}"):
                response = await self.client.post("/v1/retrieve", json={"query": query})
                found = response.raise_for_status().json()["findings"][0]["facts"]
                if found and found[0]["id"] == fact["id"]:
                    part = shard_of(fact["id"], DEFAULT_NUM_SHARDS) % NUM_SHARDS
                    firing.setdefault(part, (fact, query))
            if len(firing) == NUM_SHARDS:
                break
        if len(firing) < NUM_SHARDS:
            raise RuntimeError("no two facts in two shards fire for their own prompts; give another editor")
        self.facts = [fact for fact, _ in firing.values()]
        self.prompts = [query for _, query in firing.values()]
        await self.write()

    async def write(self) -> None:
        """Put both facts in one request; their sources say which write it is."""
        self.num_writes += 1
        facts = [{**fact, "source": f"write {self.num_writes}"} for fact in self.facts]
        try:
            response = await self.client.put("/v1/facts", json={"facts": facts})
        except httpx.TransportError as error:
            self.write_errors[type(error).__name__] += 1
            return
        if response.status_code != 200:
            self.write_errors[str(response.status_code)] += 1

    async def watch_writes(self) -> dict[str, Any]:
        """Put both facts time after time while they are looked up; how long older ones are still found."""
        over = asyncio.Event()
        seen: list[tuple[float, int]] = []  # when a lookup was sent, and which write it found

        async def look() -> None:
            while not over.is_set():
                begun = time.perf_counter()
                response = await self.client.post("/v1/retrieve", json={"query": self.prompts[0]})
                (fact,) = response.raise_for_status().json()["findings"][0]["facts"]
                seen.append((begun, int(fact["source"].removeprefix("write "))))

        lookers = [asyncio.create_task(look()) for _ in range(self.args.clients)]
        answered: list[tuple[float, int]] = []
        took: list[float] = []
        for _ in range(self.args.writes):
            begun = time.perf_counter()
            await self.write()
            answered.append((time.perf_counter(), self.num_writes))
            took.append(answered[-1][0] - begun)
            await asyncio.sleep(0.5)
        await asyncio.sleep(2.0)
        over.set()
        await asyncio.gather(*lookers)
        lags = [
            max((begun - at for begun, found in seen if begun > at and found < number), default=0.0)
            for at, number in answered
        ]
        return {
            "visible_s": {
                "p50": float(np.quantile(lags, 0.5)),
                "p99": float(np.quantile(lags, 0.99)),
                "max": max(lags),
            },
            "put_s": {"p50": float(np.quantile(took, 0.5)), "p99": float(np.quantile(took, 0.99))},
            "lookups": len(seen),
        }

    async def keep_writing(self, stop: asyncio.Event) -> None:
        """A write a second."""
        while not await waited(stop, 1.0):
            await self.write()

    async def keep_swapping(self, stop: asyncio.Event) -> None:
        """Make an earlier version current, again and again, and look at the memory."""
        while not await waited(stop, self.args.swap_s):
            versions = (await self.client.get("/v1/snapshots", params={"limit": 4})).json().get("snapshots", [])
            if versions:
                response = await self.client.post(f"/v1/snapshots/{versions[-1]['version']}/activate")
                if response.status_code != 200:
                    self.write_errors[f"activate {response.status_code}"] += 1
            self.memory.append(await asyncio.to_thread(memory_bytes))

    async def kill(self, stop: asyncio.Event) -> None:
        """An engine after a third of the time, an index shard after two."""
        for part in ("Engine", "IndexShard"):
            if await waited(stop, self.args.seconds / 3):
                return
            victim = next(process for process in psutil.Process().children(recursive=True) if is_replica(process, part))
            victim.kill()
            self.kills.append(time.perf_counter())

    async def ask_for(self, seconds: float) -> None:
        """All clients ask, each its next request as soon as the last is answered."""
        until = time.perf_counter() + seconds

        async def one_client() -> None:
            while time.perf_counter() < until:
                self.answers.append(await self.ask())
                if self.answers[-1].status != 200:
                    await asyncio.sleep(0.2)

        await asyncio.gather(*(one_client() for _ in range(self.args.clients)))

    async def ask(self) -> Answer:
        """One request with two prompts."""
        begun = time.perf_counter()
        body = {"prompt": self.prompts, "max_tokens": MAX_TOKENS, "temperature": 0}
        try:
            response = await self.client.post("/v1/completions", json=body)
        except httpx.TransportError as error:
            return Answer(begun, time.perf_counter() - begun, 0, type(error).__name__, False, frozenset(), frozenset())
        seconds = time.perf_counter() - begun
        if response.status_code != 200:
            code = str(response.json().get("error", {}).get("code"))
            clear = response.status_code in (429, 503) and "retry-after" in response.headers
            return Answer(begun, seconds, response.status_code, code, clear, frozenset(), frozenset())
        said = [choice["recipe"] for choice in response.json()["choices"]]
        return Answer(
            begun,
            seconds,
            200,
            "",
            True,
            frozenset(fact["source"] for one in said for fact in one["facts"]),
            frozenset(one["snapshot"] for one in said),
        )

    def result(self, peace: list[Answer], unrest: list[Answer]) -> dict[str, Any]:
        """The JSON of the last line."""
        window = self.args.kill_window_s
        undisturbed = [one for one in unrest if not any(kill - 1 < one.at_s < kill + window for kill in self.kills)]
        failed = [one for one in unrest if one.status != 200]
        p99 = {
            name: float(np.quantile([one.seconds for one in answers if one.status == 200], 0.99))
            for name, answers in (("peace", peace), ("unrest", undisturbed))
        }
        return {
            "p99_ratio": p99["unrest"] / p99["peace"],
            "p99_s": p99,
            "memory_ratio": self.memory[-1] / self.memory[1] if len(self.memory) > 2 else None,
            "mixed": sum(len(one.writes) > 1 or len(one.snapshots) > 1 for one in [*peace, *unrest]),
            "errors": dict(collections.Counter(f"{one.status} {one.code}" for one in failed)),
            "unclear": sum(not one.clear for one in failed),
            "errors_in_peace": sum(one.status != 200 for one in peace),
            "requests": {"peace": len(peace), "unrest": len(unrest), "undisturbed": len(undisturbed)},
            "edited": sum(bool(one.writes) for one in unrest),
            "snapshots_seen": len({snapshot for one in unrest for snapshot in one.snapshots}),
            "writes": self.num_writes,
            "write_errors": dict(self.write_errors),
            "swaps": len(self.memory),
            "kills": len(self.kills),
            "seconds": self.args.seconds,
            "clients": self.args.clients,
            "device": f"CPU ({platform.machine()}), {os.cpu_count()} cores",
        }


async def waited(stop: asyncio.Event, seconds: float) -> bool:
    """Wait; whether it is over."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return False
    return True


def is_replica(process: psutil.Process, part: str) -> bool:
    """Whether a process is a replica of a deployment."""
    try:
        return process.cmdline()[:1] != [] and process.cmdline()[0].startswith(f"{APP}{part}")
    except psutil.Error:
        return False


def memory_bytes() -> int:
    """Proportional set size of all replicas."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(APP):
                total += process.memory_full_info().pss
        except psutil.Error:  # it has ended meanwhile
            continue
    return total


if __name__ == "__main__":
    main()
