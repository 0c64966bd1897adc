"""Joining the cluster that was named, or starting one on this machine."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ray
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from recipe_ray.errors import ConfigError, ServiceError

IDLE_WORKER_S = 30  # a process beyond one a CPU waits so long for its next task
NO_TELEMETRY = {
    "RAY_enable_metrics_collection": "0",
    "RAY_enable_timeline": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesConfig:
    """Which nodes an autoscaled cluster shall hold, with work or without, until it is told otherwise.

    Attributes:
        gpus: GPUs, one for each training worker, engine or encoder.
        cpus: CPU cores, those of the GPU nodes included.
        wait_s: seconds after which it is given up; a new node takes some ten minutes to set up.
    """

    gpus: int = 0
    cpus: int = 0
    wait_s: float = 1800

    def __post_init__(self) -> None:
        for name in ("gpus", "cpus", "wait_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 0 or more")

    @property
    def is_wanted(self) -> bool:
        """Whether any node is."""
        return bool(self.gpus or self.cpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What the nodes of a cluster have together."""

    gpus: float
    cpus: float


def connect(
    *, num_cpus: int | None = None, training: bool = False, bulk: bool = False, show_workers: bool = False
) -> None:
    """Join the cluster that RAY_ADDRESS names, as it does in every submitted job; else start one for this process.

    A cluster that merely happens to run on the machine is not joined: it may belong to another job and end with it.
    `RAY_ADDRESS=auto` joins it. All that a started cluster starts has its address as RAY_ADDRESS; the environment of
    this process is left as it is.

    Args:
        num_cpus: CPUs that a started cluster reports; None counts the machine's.
        training: of a cluster that is joined, too, every process is told the address: a helper of Ray Train's asks for
            it.
        bulk: of a started cluster only throughput counts. It collects no metrics and no events of tasks, which nothing
            could read but what scrapes its nodes; and its processes and this one do not interrupt each other when they
            wake (SCHED_BATCH), but wait for their turn.
        show_workers: print what tasks and actors print, and their libraries, each line behind the name of its process.

    Raises:
        ServiceError: no cluster is where RAY_ADDRESS says.
    """
    level = logging.INFO if show_workers else logging.WARNING
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            told = {"env_vars": {"RAY_ADDRESS": address}} if training else None
            ray.init(log_to_driver=show_workers, runtime_env=told, logging_level=level)
        except (ConnectionError, ValueError) as error:
            raise ServiceError(
                f"no Ray cluster answers at RAY_ADDRESS {address!r} ({' '.join(str(error).split())[:200]}); "
                "correct it, or unset it to start a cluster here"
            ) from error
        return
    # On by default, it would leave a token in the home folder, and a plain `ray job submit` is refused from then on.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Ray ends idle worker processes beyond one a CPU after a second; on a small machine every task of a pipeline would
    # then wait for a new one, which costs as much as the task. Kept for ever, each takes a hundredth of a core from the
    # encoders, waking a hundred times a second.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(1000 * IDLE_WORKER_S))
    _schedule(bulk=bulk)
    with _environment({**_address(), **(NO_TELEMETRY if bulk else {})}):
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=show_workers,
            logging_level=level,
        )


def _address() -> dict[str, str]:
    """Have the next local cluster lie at an address that is known before, and its processes told of it.

    Helpers of Ray's ask for "the" cluster of the machine, such as the actor of Ray Train's that frees placement groups:
    they fail where there are two, or ask the other one.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = os.environ.get("RAY_GCS_SERVER_PORT") or str(probe.getsockname()[1])
    return {"RAY_GCS_SERVER_PORT": port, "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}


def _schedule(*, bulk: bool) -> None:
    """Give this thread, and so what it starts, Linux's policy for bulk or for ordinary work.

    Each process of Ray's wakes a hundred times a second. At once, that is five hundred interruptions a second of each
    encoder on two cores; with SCHED_BATCH less than half as many.
    """
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) in (os.SCHED_OTHER, os.SCHED_BATCH):
        with contextlib.suppress(PermissionError):  # a container may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH if bulk else os.SCHED_OTHER, os.sched_param(0))


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Have these variables where they are not set; only for now, for the next cluster may want others."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if not before[name]})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def hold_nodes(config: NodesConfig, *, poll_s: float = 5.0) -> Holding:
    """Have the autoscaler bring up nodes and wait until they are there; what was asked before counts no more.

    Jobs fit themselves into the nodes that are there when they start, and would take a cluster that has scaled to
    nothing for one without GPUs.

    Raises:
        ServiceError: they are not there in time; nothing is asked for any more.
    """
    # Here, not above: tasks, which import this package too, need none of the autoscaler.
    from ray.autoscaler.sdk import request_resources

    def look() -> Holding:
        there = ray.cluster_resources()
        return Holding(gpus=there.get("GPU", 0.0), cpus=there.get("CPU", 0.0))

    def lacks(there: Holding) -> bool:
        return there.gpus < config.gpus or there.cpus < config.cpus

    request_resources(num_cpus=config.cpus, bundles=[{"GPU": 1}] * config.gpus)
    waiting = Retrying(retry=retry_if_result(lacks), stop=stop_after_delay(config.wait_s), wait=wait_fixed(poll_s))
    try:
        return waiting(look)
    except RetryError as error:
        request_resources(num_cpus=0)
        there = look()
        raise ServiceError(
            f"{config.gpus} GPUs and {config.cpus} CPUs were asked for, and after {config.wait_s:g} s the cluster has "
            f"{there.gpus:g} and {there.cpus:g}; `ray status` tells what the autoscaler waits for: max_workers of the "
            "cluster file, the account's quota, or the zone's capacity"
        ) from error
