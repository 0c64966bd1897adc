"""Setting a bucket up: everything once, nothing twice, and what others set stays."""

import json
import re

import boto3
import botocore.client
import pytest
from botocore.exceptions import ClientError
from recording_s3 import RecordingS3
from s3_environment import s3_environment

from recipe_ray.errors import ConfigError, OutputError
from recipe_ray.store.bucket.places import BucketPlaces, BucketSetup, PolicyChoice
from recipe_ray.store.bucket.setup import RULE, STATEMENT, set_up

KMS_KEY = "arn:aws:kms:us-east-1:123456789012:key/0f0f0f0f-1111"
SETTINGS = ["public access", "ownership", "policy", "encryption", "versioning", "lifecycle"]


@pytest.fixture
def s3(monkeypatch):
    with RecordingS3().running() as s3:
        for name, value in s3_environment(s3.endpoint).items():
            monkeypatch.setenv(name, value)
        yield s3


@pytest.fixture
def bucket(request):
    """A name of its own for each test: servers of one process share what they hold."""
    return "setup-" + re.sub("[^a-z0-9]+", "-", request.node.name)[-50:].strip("-")


def changed(report):
    return [change.setting for change in report.changes]


def wrote(requests):
    return {request.method for request in requests} - {"GET", "HEAD"}


def test_a_new_bucket_is_private_encrypted_versioned_and_tidy(s3, bucket):
    report = set_up(BucketSetup(bucket=bucket, keep_versions_days=3, abort_uploads_days=2))
    assert changed(report) == ["bucket", *SETTINGS]
    client = boto3.client("s3")
    assert set(client.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values()) == {True}
    assert client.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    (rule,) = client.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    (owned,) = client.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"]["Rules"]
    assert owned == {"ObjectOwnership": "BucketOwnerEnforced"}
    (statement,) = json.loads(client.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]
    assert (statement["Effect"], statement["Principal"]) == ("Deny", "*")
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert statement["Resource"] == [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    (rule,) = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert rule["NoncurrentVersionExpiration"]["NoncurrentDays"] == 3
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}
    assert rule["Expiration"] == {"ExpiredObjectDeleteMarker": True}  # and no days: the log names what is current


def test_again_nothing_is_written(s3, bucket):
    set_up(BucketSetup(bucket=bucket))
    with s3.recording() as requests:
        report = set_up(BucketSetup(bucket=bucket))
    assert (report.changes, report.attention, wrote(requests)) == ((), (), set())


def test_a_dry_run_tells_what_the_run_then_does_and_writes_nothing(s3, bucket):
    config = {"bucket": bucket, "keep_versions_days": 30}
    with s3.recording() as requests:
        told = set_up(BucketSetup(**config, dry_run=True))
    assert wrote(requests) == set()
    assert set_up(BucketSetup(**config)).changes == told.changes
    assert changed(set_up(BucketSetup(bucket=bucket, keep_versions_days=5, dry_run=True))) == ["lifecycle"]


def test_rules_and_statements_of_others_stay_and_our_own_are_renewed(s3, bucket):
    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket)
    theirs = {"ID": "dumps", "Status": "Enabled", "Filter": {"Prefix": "dumps/"}, "Expiration": {"Days": 90}}
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [theirs]})
    said = {
        "Sid": "Theirs",
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::123456789012:root"},
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{bucket}/*",
    }
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": said}))
    set_up(BucketSetup(bucket=bucket, keep_versions_days=3))
    report = set_up(BucketSetup(bucket=bucket, keep_versions_days=4))
    assert (changed(report), report.attention) == (["lifecycle"], ())
    rules = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert [rule["ID"] for rule in rules] == ["dumps", RULE]
    assert rules[1]["NoncurrentVersionExpiration"]["NoncurrentDays"] == 4
    statements = json.loads(client.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]
    assert statements[0] == said
    assert [one["Sid"] for one in statements] == ["Theirs", STATEMENT]


@pytest.mark.parametrize(
    "rule",
    [
        {"Filter": {"Prefix": ""}, "Expiration": {"Days": 30}},
        {"Filter": {"Prefix": "facts/llama/"}, "Expiration": {"Days": 30}},
        {"Filter": {"Prefix": "edit"}, "Transitions": [{"Days": 30, "StorageClass": "GLACIER"}]},
    ],
    ids=["all expires", "a table expires", "editors are archived"],
)
def test_a_rule_that_would_take_what_is_needed_is_pointed_at(s3, bucket, rule):
    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket)
    theirs = {"ID": "theirs", "Status": "Enabled", **rule}
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [theirs]})
    (said,) = set_up(BucketSetup(bucket=bucket)).attention
    assert "'theirs'" in said
    client.put_bucket_lifecycle_configuration(
        Bucket=bucket, LifecycleConfiguration={"Rules": [theirs | {"Status": "Disabled"}]}
    )
    assert set_up(BucketSetup(bucket=bucket)).attention == ()


def test_a_kms_key_that_is_there_stays_and_one_that_is_given_is_set(s3, bucket):
    set_up(BucketSetup(bucket=bucket))
    assert changed(set_up(BucketSetup(bucket=bucket, kms_key=KMS_KEY))) == ["encryption"]
    assert changed(set_up(BucketSetup(bucket=bucket, kms_key=KMS_KEY))) == []
    assert changed(set_up(BucketSetup(bucket=bucket))) == []
    (rule,) = boto3.client("s3").get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["KMSMasterKeyID"] == KMS_KEY
    assert rule["BucketKeyEnabled"]


def test_a_bucket_is_made_in_its_region(s3, bucket):
    set_up(BucketSetup(bucket=bucket, region="eu-west-1"))
    assert boto3.client("s3").get_bucket_location(Bucket=bucket)["LocationConstraint"] == "eu-west-1"


def test_what_an_endpoint_does_not_offer_is_told_and_the_rest_is_done(monkeypatch, bucket):
    with RecordingS3(not_offered=["publicAccessBlock", "ownershipControls"]).running() as s3:
        for name, value in s3_environment(s3.endpoint).items():
            monkeypatch.setenv(name, value)
        report = set_up(BucketSetup(bucket=bucket))
    assert changed(report) == ["bucket", "policy", "encryption", "versioning", "lifecycle"]
    assert [text.partition(":")[0] for text in report.attention] == ["public access", "ownership"]


def test_what_may_not_be_changed_is_named_with_the_permission(s3, bucket, monkeypatch):
    call = botocore.client.BaseClient._make_api_call

    def refuse(self, operation, kwargs):
        if operation == "PutBucketVersioning":
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, operation)
        return call(self, operation, kwargs)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", refuse)
    with pytest.raises(OutputError, match=rf"s3://{bucket}: versioning .*s3:PutBucketVersioning"):
        set_up(BucketSetup(bucket=bucket))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"bucket": "s3://lab"}, "give the name alone"),
        ({"facts": "/facts"}, "without / at the ends"),
        ({"facts": "*"}, "give a prefix of"),
        ({"facts": "${aws:username}"}, "give a prefix of"),
        ({"facts": ""}, "give a prefix of"),
        ({"facts": "editors"}, "lies within"),
        ({"facts": "editors/facts"}, "facts is 'editors/facts' and lies within editors"),
    ],
    ids=["a URI", "a slash", "a wildcard", "a variable", "nothing", "one place twice", "one within the other"],
)
def test_places_that_would_mean_something_else_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        BucketPlaces(**{"bucket": "lab", **wrong})


def test_other_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="keep_versions_days is 0"):
        BucketSetup(bucket="lab", keep_versions_days=0)
    with pytest.raises(ConfigError, match="give the key's ARN"):
        BucketSetup(bucket="lab", kms_key="alias/mine")
    with pytest.raises(ConfigError, match="online_writes is off and role is trainer"):
        PolicyChoice(bucket="lab", role="trainer", online_writes=False)
