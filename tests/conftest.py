"""For all tests: no hub, no authentication token, one Ray cluster for the session, an S3 server on loopback."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from s3_environment import s3_environment


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
