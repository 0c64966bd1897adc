"""Joining the cluster that was named, or starting one on this machine."""

import os

import ray

from recipe_ray.errors import ServiceError

IDLE_WORKERS = 6  # processes kept for the next tasks, beside one a CPU


def connect(*, num_cpus: int | None = None, show_workers: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS names, as it does in every submitted job; else start one for this process.

    A cluster that merely happens to run on the machine is not joined: it may belong to another job and end with it.
    `RAY_ADDRESS=auto` joins it.

    Args:
        num_cpus: CPUs that a started cluster reports; None counts the machine's.
        show_workers: print what tasks and actors print. The dashboard then runs too: Ray Train asks its state API about
            the run every second, and would complain on the console as often.

    Raises:
        ServiceError: no cluster is where RAY_ADDRESS says.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(log_to_driver=show_workers)
        except (ConnectionError, ValueError) as error:
            raise ServiceError(
                f"no Ray cluster answers at RAY_ADDRESS {address!r} ({' '.join(str(error).split())[:200]}); "
                "correct it, or unset it to start a cluster here"
            ) from error
        return
    # On by default, it would leave a token in the home folder, and a plain `ray job submit` is refused from then on.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Ray ends idle worker processes beyond one a CPU after a second; on a small machine every task of a pipeline would
    # then wait for a new one, which costs as much as the task: a tenth of an ingest.
    os.environ.setdefault("RAY_num_workers_soft_limit", str(IDLE_WORKERS + (num_cpus or os.cpu_count() or 1)))
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=show_workers, log_to_driver=show_workers)
