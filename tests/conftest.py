"""Fixtures for all tests: no hub, no authentication token, one Ray cluster for the session."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest


@pytest.fixture(scope="session")
def ray_cluster():
    """The one Ray cluster of the session."""
    import ray

    ray.init(
        address="local",  # never one that happens to run on the machine
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=150 * 1024**2,
        configure_logging=True,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
