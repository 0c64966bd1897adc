"""Least-privilege IAM policies of the roles, all from one table of who reads and who writes what.

tests/infra records what each role's jobs ask of S3 and holds these policies to it, in both directions.
"""

from collections.abc import Sequence
from typing import Any

from recipe_ray.store.bucket.places import BucketPlaces, PolicyChoice, Role, region_of_key

_READS: dict[Role, tuple[str, ...]] = {
    "trainer": ("data", "llms"),
    "ingester": ("dumps", "editors"),
    "server": ("llms", "editors", "serving"),
    "maintainer": ("editors",),
}
_WRITES: dict[Role, tuple[str, ...]] = {
    "trainer": ("runs", "editors"),
    "ingester": ("facts", "reports"),
    "server": ("facts",),
    "maintainer": ("facts", "serving"),
}
_READ_ACTIONS = ["s3:GetObject"]
_WRITE_ACTIONS = ["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject"]


def role_policy(choice: PolicyChoice) -> dict[str, Any]:
    """The policy document of a role, to be attached to it; one role may have several."""
    reads, writes = _READS[choice.role], _WRITES[choice.role]
    if choice.role == "server" and not choice.online_writes:
        reads, writes = (*reads, *writes), ()
    statements = [_objects(choice, "Read", reads, _READ_ACTIONS)]
    if writes:
        statements.append(_objects(choice, "Write", writes, _WRITE_ACTIONS))
    # Listing is also what lets S3 answer that an object is not there, instead of that it is none of our business.
    statements.append(_listing(choice, "List", sorted((*reads, *writes)), "s3:ListBucket"))
    if choice.role == "maintainer":
        statements += _erasing(choice)
    if choice.kms_key is not None:
        statements.append(_key(choice.kms_key, writes=bool(writes)))
    return {"Version": "2012-10-17", "Statement": statements}


def _objects(choice: PolicyChoice, sid: str, names: Sequence[str], actions: list[str]) -> dict[str, Any]:
    # The prefix itself too: whether it is a file or a folder is asked by its bare name.
    resources = [f"{_arn(choice)}/{pattern}" for pattern in _patterns(choice, names)]
    return {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}


def _listing(choice: PolicyChoice, sid: str, names: Sequence[str], action: str) -> dict[str, Any]:
    return {
        "Sid": sid,
        "Effect": "Allow",
        "Action": [action],
        "Resource": [_arn(choice)],
        "Condition": {"StringLike": {"s3:prefix": _patterns(choice, names)}},
    }


def _erasing(choice: PolicyChoice) -> list[dict[str, Any]]:
    """What `facts.py erase` takes where the bucket keeps older versions."""
    return [
        _objects(choice, "EraseVersions", ["facts"], ["s3:DeleteObjectVersion"]),
        _listing(choice, "ListVersions", ["facts"], "s3:ListBucketVersions"),
        # IAM knows no condition on a prefix here: the names of uploads under way in the whole bucket can be seen.
        {
            "Sid": "ListUploads",
            "Effect": "Allow",
            "Action": ["s3:ListBucketMultipartUploads"],
            "Resource": [_arn(choice)],
        },
    ]


def _key(kms_key: str, *, writes: bool) -> dict[str, Any]:
    service = f"s3.{region_of_key(kms_key)}.amazonaws.com" + (".cn" if kms_key.startswith("arn:aws-cn:") else "")
    return {
        "Sid": "Key",
        "Effect": "Allow",
        # Uploads in parts decrypt too.
        "Action": ["kms:Decrypt", *(["kms:GenerateDataKey"] if writes else [])],
        "Resource": [kms_key],
        "Condition": {"StringEquals": {"kms:ViaService": service}},
    }


def _patterns(places: BucketPlaces, names: Sequence[str]) -> list[str]:
    prefixes = places.prefixes()
    return [pattern for name in names for pattern in (prefixes[name], f"{prefixes[name]}/*")]


def _arn(choice: PolicyChoice) -> str:
    return f"arn:{choice.partition}:s3:::{choice.bucket}"
