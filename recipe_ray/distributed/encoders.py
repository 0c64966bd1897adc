"""The pool of encoders that an ingest asks the cluster for."""

import math
from dataclasses import dataclass

import ray

from recipe_ray.distributed.ingest_args import IngestConfig
from recipe_ray.errors import ConfigError
from recipe_ray.store.files import absolute_editor

TASK_CPUS = 0.5  # two cores must hold a reader, a writer and an encoder at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoders:
    """The pool that encodes.

    Attributes:
        editor: URI of the editor's directory.
        device: cpu or cuda.
        num_encoders: largest size of the pool.
        cpus, gpus: what one encoder reserves.
    """

    editor: str
    device: str
    num_encoders: int
    cpus: float
    gpus: float


def fit_encoders(config: IngestConfig) -> Encoders:
    """Fit the pool into the cluster, with room left for reading and writing.

    On CPUs there is one encoder, of one thread, for each core: several threads in one encoder wait for each other. No
    more than that, also where more would fit beside each other on nodes of one CPU: once a node is lost, its encoders
    would take all that is left, and nothing would be read or written any more.

    Raises:
        ConfigError: the cluster lacks what was asked for.
    """
    have = ray.cluster_resources()
    have_cpus, have_gpus = have.get("CPU", 0.0), have.get("GPU", 0.0)
    use_gpu = (
        config.device == "cuda" or config.gpus_per_encoder is not None or (config.device == "auto" and have_gpus > 0)
    )
    gpus = (config.gpus_per_encoder or 1.0) if use_gpu else 0.0
    cpus = config.cpus_per_encoder or (min(1.0, have_cpus / 2) if use_gpu else _share_of_node())
    if gpus > have_gpus:
        raise ConfigError(f"an encoder needs {gpus:g} GPUs, the cluster has {have_gpus:g}; add some or use device cpu")
    if cpus > have_cpus - TASK_CPUS:
        raise ConfigError(
            f"an encoder needs {cpus:g} CPUs and reading {TASK_CPUS:g}, the cluster has {have_cpus:g}; "
            "lower cpus_per_encoder or add CPUs"
        )
    room = int((have_cpus - TASK_CPUS) / cpus + 1e-6)
    if use_gpu:
        room = min(room, int(have_gpus / gpus))
    elif config.cpus_per_encoder is None:
        room = min(room, sum(max(1, int(cpus)) for cpus in _cpus_of_nodes()))
    if config.num_encoders is not None and config.num_encoders > room:
        raise ConfigError(
            f"num_encoders is {config.num_encoders}, but the cluster has room for {room} of {cpus:g} CPUs and "
            f"{gpus:g} GPUs each; give fewer, or add nodes"
        )
    return Encoders(
        editor=absolute_editor(config.editor),
        device="cuda" if use_gpu else "cpu",
        num_encoders=config.num_encoders or room,
        cpus=cpus,
        gpus=gpus,
    )


def _share_of_node() -> float:
    """CPUs of an encoder such that the smallest node holds one a core beside one task."""
    smallest = min(_cpus_of_nodes(), default=None)
    if smallest is None:
        return 1.0
    # Ray keeps four decimals.
    return math.floor(1e4 * max(smallest - TASK_CPUS, smallest / 2) / max(1, int(smallest))) / 1e4


def _cpus_of_nodes() -> list[float]:
    """Of the nodes that have any."""
    return [cpus for node in ray.nodes() if node["Alive"] and (cpus := node["Resources"].get("CPU", 0.0))]
