"""A Ray cluster of several nodes on this machine, to try what happens between nodes and when one is lost.

    python -m recipe_ray.distributed.local_nodes 1 1 1        # a head without CPUs and three nodes of one CPU each
    python -m recipe_ray.distributed.local_nodes 2 2 --resources '{"index": 1}'

prints one JSON object, `{"address": …, "nodes": [{"name": "node-1", "node_id": …, "pid": …}, …]}`, and takes a command
a line: `kill NAME`, `add CPUS`; it ends, and the cluster with it, at the end of its input. Jobs join it by RAY_ADDRESS,
as they join any other. The nodes share the machine's cores, memory and file system: CPUs are what Ray is told, no more.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any

from ray.cluster_utils import Cluster

from recipe_ray.errors import ServiceError

START_TIMEOUT_S = 400.0  # a node takes some seconds, on a busy machine a minute
NUM_TRIES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalNode:
    """A node: its name, Ray's id of it, and its raylet's process, of which all that runs on it are descendants."""

    name: str
    node_id: str
    pid: int


class LocalNodes:
    """A running cluster, owned by another process.

    Attributes:
        address: what RAY_ADDRESS is to be.
        nodes: those with CPUs that live, by name.
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        self._process = process
        self._said: Queue[str] = Queue()
        threading.Thread(target=_pass_on, args=(process.stdout, self._said), daemon=True).start()
        begun = self._answer()
        self.address: str = begun["address"]
        self.nodes = {node["name"]: LocalNode(**node) for node in begun["nodes"]}

    def kill(self, name: str) -> None:
        """SIGKILL for the raylet of a node and all that runs on it, at once, as where a machine is lost."""
        self._ask(f"kill {name}")
        del self.nodes[name]

    def add(self, cpus: float) -> LocalNode:
        """Another node."""
        node = LocalNode(**self._ask(f"add {cpus:g}"))
        self.nodes[node.name] = node
        return node

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._said.get(timeout=START_TIMEOUT_S)
        except Empty:
            line = ""
        if not line:
            raise ServiceError(
                f"the local cluster does not answer within {START_TIMEOUT_S:g} seconds, or has ended; its errors are "
                "above, Ray's logs below /tmp/ray/session_latest/logs"
            )
        return dict(json.loads(line))


@contextmanager
def local_nodes(
    cpus: Sequence[float], *, resources: Mapping[str, float] | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[LocalNodes]:
    """Run a cluster for as long as a `with` block lasts.

    Args:
        cpus: of each node beside the head, which has none: the first is called node-1.
        resources: custom ones that each of these nodes has.
        environment: variables that all its processes get beside this one's.

    Raises:
        ServiceError: it does not start.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, *(f"{one:g}" for one in cpus), "--resources", json.dumps(resources or {})],
        env={**os.environ, "RAY_AUTH_MODE": "disabled", **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield LocalNodes(process)
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()


def _pass_on(lines: IO[str], said: "Queue[str]") -> None:
    with suppress(ValueError):  # closed
        for line in lines:
            if line.startswith("{"):
                said.put(line)
    said.put("")


def main() -> None:
    """Command line of the process that owns the cluster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cpus", type=float, nargs="+", help="CPUs of each node beside the head, which has none")
    parser.add_argument("--resources", type=json.loads, default={}, help="of each of them, a JSON object")
    args = parser.parse_args()
    cluster = Cluster()
    _patiently(lambda: cluster.add_node(num_cpus=0, include_dashboard=False, wait=False))
    found: dict[str, Any] = {}

    def add(cpus: float) -> str:
        name = f"node-{len(found) + 1}"
        found[name] = _patiently(
            lambda: cluster.add_node(
                num_cpus=int(cpus) if cpus.is_integer() else cpus,
                resources=args.resources or None,
                node_name=name,
                wait=False,
            )
        )
        return name

    def told(name: str) -> dict[str, Any]:
        node = found[name]
        return asdict(LocalNode(name=name, node_id=node.node_id, pid=_raylet(node)))

    try:
        names = [add(one) for one in args.cpus]
        cluster.wait_for_nodes(timeout=START_TIMEOUT_S)
        _say({"address": cluster.address, "nodes": [told(name) for name in names]})
        for line in sys.stdin:
            match line.split():
                case ["kill", name] if name in names:
                    names.remove(name)
                    _kill_all(_raylet(found[name]))
                    cluster.remove_node(found[name], allow_graceful=False)
                    _say({"killed": name})
                case ["add", cpus] if cpus.replace(".", "", 1).isdigit():
                    names.append(add(float(cpus)))
                    cluster.wait_for_nodes(timeout=START_TIMEOUT_S)
                    _say(told(names[-1]))
                case _:
                    print(f"give 'add CPUS', or 'kill NAME' with one of {', '.join(names)}", file=sys.stderr)
    finally:
        cluster.shutdown()


def _patiently(start: Callable[[], Any]) -> Any:
    """Start a node; once more where its raylet ended itself.

    It does where its agents do not start within 15 seconds, which on a busy machine they may not; Ray has no setting.
    """
    for _ in range(NUM_TRIES - 1):
        before = set(_children(os.getpid()))
        try:
            return start()
        except Exception as error:  # noqa: BLE001  # Ray raises just that
            print(f"tried once more: {error}", file=sys.stderr)
            for pid in set(_children(os.getpid())) - before:
                _kill_all(pid)
    return start()


def _say(value: Mapping[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _kill_all(pid: int) -> None:
    """A process and its descendants, parents first, so that none is started anew."""
    with suppress(ProcessLookupError):
        children = _children(pid)
        os.kill(pid, signal.SIGKILL)
        for child in children:
            _kill_all(child)


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for task in tasks for child in task.read_text().split()]
    return []


if __name__ == "__main__":
    main()
