"""Bring up nodes before a job, and let them go: `python jobs/nodes.py --gpus 4 --cpus 32`, afterwards without flags.

Exit status: 0 they are there (or let go), 1 they are not, 64 a wrong command line.
"""

import ray

from jobs._cli import run
from recipe_ray.distributed.cluster import NodesConfig, connect, hold_nodes


def main(config: NodesConfig) -> None:
    """Ask the autoscaler for nodes and wait for them: jobs count what is there, and a cluster starts with none."""
    connect()
    try:
        there = hold_nodes(config)
    finally:
        ray.shutdown()
    print(f"the cluster has {there.gpus:g} GPUs and {there.cpus:g} CPUs; {'held' if config.is_wanted else 'let go'}")


if __name__ == "__main__":
    run(main, NodesConfig)
