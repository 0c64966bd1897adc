"""Each role's policy grants what its jobs ask of S3, as recorded at a server, and nothing beyond its places."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import boto3
import pytest
import s3_work
from iam import Need, needs_of, refused
from recording_s3 import RecordingS3
from s3_environment import s3_environment

from recipe_ray.store.bucket.places import BucketPlaces, PolicyChoice, Role
from recipe_ray.store.bucket.policies import role_policy

ROOT = Path(__file__).parents[2]
ROLES = get_args(Role)
KMS_KEY = "arn:aws:kms:eu-west-1:123456789012:key/0f0f0f0f-1111"
AFTER_FAULTS = {"s3:AbortMultipartUpload"}  # what no undisturbed job does


def edits(number):
    land = f"Land {number}"
    locality = [{"kind": "other", "prompt": f"River {number} flows", "target": "north"}]
    return {"prompt": f"{land} is ruled from", "target": "a town", "subject": land, "locality": locality}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A server that records, named by the standard variables, and its bucket with versioning."""
    with RecordingS3().running() as s3, pytest.MonkeyPatch.context() as monkeypatch:
        cache = tmp_path_factory.mktemp("cache")
        for name, value in {**s3_environment(s3.endpoint), "RECIPE_RAY_CACHE": str(cache)}.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket=s3_work.BUCKET)
        client.put_bucket_versioning(Bucket=s3_work.BUCKET, VersioningConfiguration={"Status": "Enabled"})
        body = "\n".join(json.dumps(edits(number)) for number in range(200)).encode()
        client.put_object(Bucket=s3_work.BUCKET, Key="data/edits.jsonl", Body=body)
        client.put_object(Bucket=s3_work.BUCKET, Key="serving/keys.json", Body=b'{"keys": []}')
        s3_work.put_dump("a town")
        s3_work.without_ray(monkeypatch)
        yield s3


@pytest.fixture(scope="module")
def recorded(environment, editor_dir):
    """The requests of each role, and of a server of a fixed version."""
    work = {
        "trainer": lambda: s3_work.train(editor_dir),
        "ingester": s3_work.ingest_and_index,
        "pinned": lambda: s3_work.serve_pinned(1),
        "server": s3_work.serve,
        "maintainer": s3_work.look_after,
    }
    found = {}
    for name, do in work.items():
        with environment.recording() as found[name]:
            do()
    return found


def needs(requests):
    return {need for request in requests for need in needs_of(request)}


def policy(role, **choice):
    return role_policy(PolicyChoice(bucket=s3_work.BUCKET, role=role, runs="team/runs", **choice))


def test_requests_of_all_three_libraries_are_recorded(recorded):
    agents = " ".join(request.agent for request in recorded["ingester"])
    assert all(name in agents for name in ("Boto3", "aws-sdk-cpp", "object_store"))


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_what_its_jobs_do(recorded, role):
    assert refused(policy(role), needs(recorded[role])) == []


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_not_do_with_less(recorded, role):
    """Without any one action of any one statement its jobs do not run."""
    whole, asked = policy(role), needs(recorded[role])
    for number, statement in enumerate(whole["Statement"]):
        for action in set(statement["Action"]) - AFTER_FAULTS:
            less = {**statement, "Action": [other for other in statement["Action"] if other != action]}
            statements = [less if place == number else one for place, one in enumerate(whole["Statement"])]
            assert refused({"Statement": statements}, asked), (statement["Sid"], action)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_abort_what_it_may_upload(role):
    for statement in policy(role)["Statement"]:
        assert ("s3:PutObject" in statement["Action"]) == ("s3:AbortMultipartUpload" in statement["Action"])


def test_a_server_of_a_fixed_version_needs_to_write_nothing(recorded):
    read_only = policy("server", online_writes=False)
    assert refused(read_only, needs(recorded["pinned"])) == []
    denied = {need.action for need in refused(read_only, needs(recorded["server"]))}
    assert denied == {"s3:PutObject", "s3:DeleteObject"}


GRANTED = {  # r: read and list; w: also write and delete; e: also older versions
    "trainer": {"data": "r", "llms": "r", "runs": "w", "editors": "w"},
    "ingester": {"dumps": "r", "editors": "r", "facts": "w", "reports": "w"},
    "server": {"llms": "r", "editors": "r", "serving": "r", "facts": "w"},
    "maintainer": {"editors": "r", "serving": "w", "facts": "e"},
}
TAKES = {
    "s3:GetObject": "rwe",
    "s3:ListBucket": "rwe",
    "s3:PutObject": "we",
    "s3:DeleteObject": "we",
    "s3:DeleteObjectVersion": "e",
    "s3:ListBucketVersions": "e",
    "s3:PutObjectAcl": "",
    "s3:DeleteBucket": "",
    "s3:PutBucketPolicy": "",
    "s3:PutLifecycleConfiguration": "",
}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_in_other_places_nothing(role):
    places = BucketPlaces(bucket=s3_work.BUCKET, runs="team/runs")
    arn, whole = f"arn:aws:s3:::{places.bucket}", policy(role)
    for name, prefix in places.prefixes().items():
        for action, degrees in TAKES.items():
            key = f"{prefix}/some/thing"
            is_listing = "List" in action
            need = Need(action, arn if is_listing else f"{arn}/{key}", f"{key}/" if is_listing else None)
            expected = GRANTED[role].get(name, "-") in degrees
            assert (not refused(whole, [need])) == expected, need
            for elsewhere in (
                replace(need, resource=need.resource.replace(arn, f"{arn}-2")),  # another bucket
                Need(action, arn if is_listing else f"{arn}/{prefix}-2/x", f"{prefix}-2/" if is_listing else None),
            ):
                assert refused(whole, [elsewhere]), elsewhere
        assert refused(whole, [Need("s3:ListBucket", arn, prefix="")])
        assert refused(whole, [Need("s3:ListBucket", arn)])


@pytest.mark.parametrize("role", ROLES)
def test_no_statement_is_broader_than_it_reads(role):
    for statement in policy(role, kms_key=KMS_KEY)["Statement"]:
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in statement["Action"])
        for resource in statement["Resource"]:
            assert "*" not in resource.removesuffix("/*")
            assert not resource.endswith(f":::{s3_work.BUCKET}/*")
        if {"s3:ListBucket", "s3:ListBucketVersions"} & set(statement["Action"]):
            assert statement["Condition"]["StringLike"]["s3:prefix"]
    assert len(json.dumps(policy(role, kms_key=KMS_KEY)).replace(" ", "")) <= 6144  # IAM's limit of a managed policy


def test_prefixes_bucket_and_partition_are_filled_in():
    choice = PolicyChoice(bucket="my.bucket", role="ingester", facts="team/facts", partition="aws-cn")
    text = json.dumps(role_policy(choice))
    assert "arn:aws-cn:s3:::my.bucket/team/facts/*" in text
    assert "/facts" not in text.replace("team/facts", "")


@pytest.mark.parametrize("role", ROLES)
def test_the_key_is_for_objects_of_its_region_alone(role):
    *_, statement = policy(role, kms_key=KMS_KEY)["Statement"]
    assert statement["Resource"] == [KMS_KEY]
    assert statement["Condition"] == {"StringEquals": {"kms:ViaService": "s3.eu-west-1.amazonaws.com"}}
    assert statement["Action"] == ["kms:Decrypt", "kms:GenerateDataKey"]


def test_who_only_reads_makes_no_data_keys():
    *_, statement = policy("server", online_writes=False, kms_key=KMS_KEY)["Statement"]
    assert statement["Action"] == ["kms:Decrypt"]


@pytest.mark.ray
@pytest.mark.faults
def test_the_trainer_may_do_what_a_whole_training_does(environment):
    command = [sys.executable, "jobs/train.py", "--preset", "smoke", "--device", "cpu", "--num-steps", "4"]
    command += ["--storage", f"{s3_work.RUNS}/nested", "--run", "whole", "--set", "cpus_per_worker=0.5"]
    with environment.recording() as requests:
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    asked = needs(requests)
    assert {"s3:PutObject", "s3:DeleteObject", "s3:GetObject"} <= {need.action for need in asked}
    assert refused(policy("trainer"), asked) == []
