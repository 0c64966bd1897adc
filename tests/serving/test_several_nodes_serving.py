"""Parts of the index on several nodes, of which one is lost under load; the nodes are processes of this machine."""

import collections
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from node_processes import titles

from recipe_ray.distributed.local_nodes import local_nodes
from recipe_ray.store.schema import shard_of
from recipe_ray.store.table import DEFAULT_NUM_SHARDS
from recipe_ray.testbed.million import generate_facts

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[2]
NUM_PARTS = 2
NUM_FACTS = 300
NUM_CLIENTS = 4
PEACE_S = 5.0
START_S = 1200.0
RECOVERY_S = 600.0  # both on a machine that other jobs fill
REPLICA = re.compile(r"ServeReplica:recipe:([\w-]+)")  # in the title of its process


@contextmanager
def server(address, editor, table, log, *flags):
    """The URL of jobs/serve.py on a cluster; its proxy is on the head, which is not lost."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "jobs/serve.py", "--editor", editor, "--table", table, "--port", port, *flags]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)},
            stdout=sink,
            stderr=sink,
        )
        try:
            deadline = time.monotonic() + START_S
            while f"serving {url}" not in log.read_text():
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Load:
    """Clients that ask the same questions over and over; what they were answered in peace is what is right."""

    def __init__(self, url, requests):
        self._url = url
        self._requests = requests
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(NUM_CLIENTS)]
        with httpx.Client(base_url=url, timeout=150, trust_env=False) as client:
            self._right = [what(client.post(path, json=body).raise_for_status()) for path, body in requests]
        self.answers = []  # when it came, which request, the status, whether right, whether one may try again

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number):
        with httpx.Client(base_url=self._url, timeout=150, trust_env=False) as client:
            while not self._stop.is_set():
                number = (number + 1) % len(self._requests)
                path, body = self._requests[number]
                response = client.post(path, json=body)
                is_right = response.status_code == 200 and what(response) == self._right[number]
                may_retry = response.status_code == 503 and "retry-after" in response.headers
                self.answers.append((time.monotonic(), number, response.status_code, is_right, may_retry))
                if not is_right:
                    time.sleep(0.2)

    def is_whole_since(self, moment):
        """Whether every request was answered rightly since then, and none otherwise."""
        late = [answer for answer in list(self.answers) if answer[0] > moment]
        return {number for _, number, _, is_right, _ in late if is_right} == set(range(len(self._requests))) and all(
            is_right for _, _, _, is_right, _ in late
        )

    def whole_again_at(self, lost_at):
        """When the first right answer came after the last other one."""
        answers = sorted(self.answers)
        last = max((at for at, _, _, is_right, _ in answers if at > lost_at and not is_right), default=lost_at)
        return next(at for at, *_ in answers if at > last)

    def longest_gap_s(self, since):
        """Longest time without a right answer."""
        moments = [since, *sorted(at for at, _, _, is_right, _ in self.answers if is_right and at > since)]
        return max(after - before for before, after in itertools.pairwise(moments))


def what(response):
    """What an answer says, without what differs from one to the next."""
    said = response.json()
    if "findings" in said:
        return [[fact["id"] for fact in finding["facts"]] for finding in said["findings"]]
    return [(choice["text"], [fact["id"] for fact in choice["recipe"]["facts"]]) for choice in said["choices"]]


def part_of(fact_id):
    return shard_of(fact_id, DEFAULT_NUM_SHARDS) % NUM_PARTS


def questions(url):
    """Put facts; for each part of the index two queries for which a fact of that part fires."""
    facts = list(generate_facts(NUM_FACTS, seed=0))
    found = collections.defaultdict(list)
    with httpx.Client(base_url=url, timeout=150, trust_env=False) as client:
        put = client.put("/v1/facts", json={"facts": facts}).raise_for_status().json()
        for start in range(0, NUM_FACTS, 25):
            some = facts[start : start + 25]
            queries = [text for fact in some for text in (fact["prompt"], f"{fact['prompt']} {fact['target']}")]
            body = {"queries": queries, "min_snapshot": put["snapshot"]}
            findings = client.post("/v1/retrieve", json=body).raise_for_status().json()["findings"]
            for query, finding in zip(queries, findings, strict=True):
                for fact in finding["facts"]:
                    found[part_of(fact["id"])].append(query)
    assert set(found) == set(range(NUM_PARTS)), "no fact fires in one of the parts"
    return [query for of_part in found.values() for query in of_part[:2]]


def replicas(nodes):
    """Deployments whose replicas run on each node, by its name."""
    return {
        name: {match[1] for title in titles(node) if (match := REPLICA.search(title))}
        for name, node in nodes.nodes.items()
    }


def nodes_of(part, placed):
    return sorted(name for name, parts in placed.items() if part in parts)


@pytest.fixture
def table(table_uri, tmp_path):
    """A copy, which is written to."""
    shutil.copytree(table_uri, tmp_path / "table")
    return tmp_path / "table"


FLAGS = ("--num-index-shards", NUM_PARTS, "--cpus", 0.3, "--retriever-cpus", 0.2, "--model-name", "tiny")


def lose_a_node(nodes, load, *, with_part):
    """Kill a node that holds a part of the index and no ingress; when, and seconds until all is answered again."""
    placed = replicas(nodes)
    (victim, *_) = [name for name in nodes_of(with_part, placed) if "Ingress" not in placed[name]]
    time.sleep(PEACE_S)
    assert load.is_whole_since(0)
    lost_at = time.monotonic()
    nodes.kill(victim)
    while time.monotonic() < lost_at + PEACE_S or not load.is_whole_since(time.monotonic() - PEACE_S):
        assert time.monotonic() < lost_at + RECOVERY_S, load.answers[-20:]
        time.sleep(0.2)
    return lost_at, load.whole_again_at(lost_at) - lost_at


def test_a_part_whose_node_is_lost_is_told_and_comes_back_on_another(editor_dir, table, tmp_path):
    with (
        local_nodes([1, 1, 1], resources={"index": 1}) as nodes,
        server(nodes.address, editor_dir, table, tmp_path / "log", *FLAGS, "--shard-resources", "index", 1) as url,
    ):
        prompts = questions(url)
        requests = [("/v1/completions", {"prompt": one, "max_tokens": 8, "temperature": 0}) for one in prompts]
        with Load(url, requests) as load:
            placed = replicas(nodes)
            held = [nodes_of(f"IndexShard-{part}", placed) for part in range(NUM_PARTS)]
            assert all(len(of_part) == 1 for of_part in held)
            assert held[0] != held[1], placed
            part = next(f"IndexShard-{number}" for number, (name,) in enumerate(held) if "Ingress" not in placed[name])
            lost_at, recovery_s = lose_a_node(nodes, load, with_part=part)
            after = replicas(nodes)
    print(f"all answered again after {recovery_s:.1f} s; {collections.Counter(one[2:] for one in load.answers)}")
    assert all(is_right or may_retry for _, _, _, is_right, may_retry in load.answers)
    assert any(may_retry and at > lost_at for at, *_, may_retry in load.answers), "the loss was not noticed"
    assert nodes_of(part, after), after


def test_a_part_of_two_replicas_answers_on_while_a_node_is_lost(editor_dir, table, tmp_path):
    flags = (*FLAGS, "--shard-replicas", 2, "--shard-replicas-per-node", 1)
    with (
        local_nodes([1, 1, 1]) as nodes,
        server(nodes.address, editor_dir, table, tmp_path / "log", *flags) as url,
        # Lookups alone: they need no engine, of which there is one.
        Load(url, [("/v1/retrieve", {"query": one}) for one in questions(url)]) as load,
    ):
        placed = replicas(nodes)
        for part in range(NUM_PARTS):
            assert len(nodes_of(f"IndexShard-{part}", placed)) == 2, placed
        part = next(
            part
            for parts in placed.values()
            if "Ingress" not in parts
            for part in sorted(parts)
            if part.startswith("IndexShard")
        )
        lost_at, recovery_s = lose_a_node(nodes, load, with_part=part)
    gap_s = load.longest_gap_s(lost_at)
    print(f"all answered again after {recovery_s:.1f} s, none for {gap_s:.1f} s; {len(load.answers)} answers")
    assert all(is_right or may_retry for _, _, _, is_right, may_retry in load.answers)
    assert gap_s < 15
