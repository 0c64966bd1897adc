"""One piece of work on a worker of the cluster, as the driver may run where nothing else may."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import ray

from recipe_ray.distributed.faults import user_faults

Value = TypeVar("Value")


def on_worker(function: Callable[..., Value], *, num_cpus: float = 1, num_gpus: float = 0, **arguments: Any) -> Value:
    """Call a function in a task, and wait for what it gives.

    Raises:
        RecipeError: what it raises.
    """
    task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus)(function)
    reference = task.remote(**arguments)
    try:
        with user_faults():
            value: Value = ray.get(reference)
            return value
    except BaseException:
        ray.cancel(reference)  # an interrupted driver leaves no work behind in a cluster that lives on
        raise


def cpus_of_largest_node(*, at_most: int) -> float:
    """Cores that one task can have, 1 at least: a cluster that scales may have none yet."""
    cpus = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return float(max(1, min(at_most, math.floor(max(cpus, default=1.0)))))
