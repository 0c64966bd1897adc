"""For all tests: no hub, no authentication token, one Ray cluster for the session, an S3 server on loopback."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
# As many tests run at once as there are cores: one thread each, and one that waits for another sleeps. Threads that
# spin for a core that another test has made a test of four seconds last over a minute.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from hypothesis import settings
from s3_environment import s3_environment

# No example is a failure because the machine was busy; under CI hypothesis draws the same examples each time, too.
settings.register_profile("default", deadline=None)

LONGEST = "tests/jobs/test_quickstart.py"
# Their tests take `server_url`: one server for all, which holds most CPUs of its cluster from its start to the end.
SERVER_FILES = tuple(f"tests/serving/test_{name}.py" for name in ("fuzz", "openai_client", "serving"))
FAULTS_TIMEOUT_S = 300  # of those that name no limit of their own; of all others: `timeout` in pyproject.toml


def pytest_collection_modifyitems(items):
    """The longest file comes first, the server last: what else wants CPUs of its cluster would wait for ever."""
    for item in items:
        if "server_url" in getattr(item, "fixturenames", ()) and file_of(item.nodeid) not in SERVER_FILES:
            raise pytest.UsageError(
                f"{item.nodeid} takes server_url; name its file in SERVER_FILES of tests/conftest.py"
            )
        if item.get_closest_marker("faults") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(FAULTS_TIMEOUT_S))
    items.sort(key=lambda item: (file_of(item.nodeid) in SERVER_FILES, file_of(item.nodeid) != LONGEST))


def file_of(nodeid):
    return nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each file on one process of xdist, and on one process all files that ask the one server, as the last of all.

    (The mark `xdist_group` would say so, but pytest 9.2 does not heed what pytest-xdist 3.8 makes of it.)
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return "server" if file_of(nodeid) in SERVER_FILES else file_of(nodeid)

    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def ray_cluster():
    """The one Ray cluster of the session, or of each process of xdist; its address."""
    import ray

    from recipe_ray.distributed.cluster import IDLE_WORKER_S, NO_TELEMETRY

    with pytest.MonkeyPatch.context() as patch:
        # As our jobs start one: a process that the next task waits for costs as much as the task.
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", str(1000 * IDLE_WORKER_S))
        for name, value in NO_TELEMETRY.items():
            patch.setenv(name, value)
        ray.init(
            address="local",  # never one that happens to run on the machine
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=150 * 1024**2,
            configure_logging=True,
            log_to_driver=False,
        )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def editor_dir(tmp_path_factory):
    """A saved editor of tiny models."""
    from tiny_models import tiny_editor

    path = tmp_path_factory.mktemp("editor")
    tiny_editor().save(path)
    return path


@pytest.fixture(scope="session")
def _s3_server():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(_s3_server, monkeypatch):
    """A bucket on loopback, named by the standard variables; the fixture's value is its URI."""
    import boto3

    for name, value in s3_environment(_s3_server).items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="facts")
    yield "s3://facts"
    for item in client.list_objects_v2(Bucket="facts").get("Contents", []):
        client.delete_object(Bucket="facts", Key=item["Key"])
    client.delete_bucket(Bucket="facts")
