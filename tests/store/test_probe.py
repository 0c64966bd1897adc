"""Whether an S3 endpoint keeps two writers apart."""

import boto3
import pytest
from faulty_s3 import FaultyS3
from s3_environment import s3_environment

from recipe_ray.errors import OutputError
from recipe_ray.store.files import SINGLE_WRITER_VARIABLE
from recipe_ray.store.probe import check_conditional_writes

KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}


@pytest.fixture
def heedless(monkeypatch, request):
    """An endpoint that does not honour conditions."""
    with FaultyS3(heedless=request.param).running() as s3:
        for name, value in s3_environment(s3.endpoint).items():
            monkeypatch.setenv(name, value)
        boto3.client("s3", endpoint_url=s3.endpoint, **KEYS).create_bucket(Bucket="facts")
        yield "s3://facts"


def keys_below(bucket):
    return [item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])]


def test_a_store_that_honours_conditions_passes_and_nothing_is_left(s3, tmp_path):
    check_conditional_writes(f"{s3}/table")
    check_conditional_writes(str(tmp_path))
    assert keys_below("facts") == []


@pytest.mark.parametrize("heedless", [True], indirect=True)
def test_one_that_does_not_is_named_with_the_way_to_go_on(heedless, monkeypatch, append):
    from test_table import Event, statements

    from recipe_ray.store.snapshot import read_snapshot

    named = rf"s3://facts/table: .*does not honour .*If-None-Match.*{SINGLE_WRITER_VARIABLE}=1"
    with pytest.raises(OutputError, match=named):
        check_conditional_writes(f"{heedless}/table")
    assert keys_below("facts") == []
    monkeypatch.setenv(SINGLE_WRITER_VARIABLE, "1")
    check_conditional_writes(f"{heedless}/table")
    append(f"{heedless}/table", Event("a", "x"))
    append(f"{heedless}/table", Event("b", "y"))
    assert statements(read_snapshot(f"{heedless}/table")) == {"a": "x", "b": "y"}


@pytest.mark.parametrize("heedless", ["refuse"], indirect=True)
def test_one_that_refuses_them_is_of_no_use_to_a_single_writer_either(heedless, monkeypatch):
    monkeypatch.setenv(SINGLE_WRITER_VARIABLE, "1")
    with pytest.raises(OutputError, match="s3://facts/table: the endpoint refuses conditional writes"):
        check_conditional_writes(f"{heedless}/table")


def test_a_bucket_that_is_not_there_is_said(s3):
    with pytest.raises(OutputError, match="s3://no-such-bucket/table: cannot be written"):
        check_conditional_writes("s3://no-such-bucket/table")
