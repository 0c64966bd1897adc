"""IAM as far as our policies use it: what a request to S3 takes, and whether a policy grants it."""

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True, order=True)
class Need:
    """A permission: an action on a resource, with the prefix that a listing names (None where it names none)."""

    action: str
    resource: str
    prefix: str | None = None


def needs_of(request):
    """The permissions that a recorded request takes."""
    if request.bucket.startswith("$"):
        return []  # no name of a bucket: pyarrow looks at how the server refuses it, to tell whose it is
    bucket = f"arn:aws:s3:::{request.bucket}"
    if not request.key:
        return _needs_of_bucket(request, bucket)
    resource, query = f"{bucket}/{request.key}", request.query
    if request.copied is not None:
        return [Need("s3:GetObject", f"arn:aws:s3:::{request.copied}"), Need("s3:PutObject", resource)]
    of_version = "Version" if "versionId" in query else ""
    action = {
        "GET": "s3:ListMultipartUploadParts" if "uploadId" in query else f"s3:GetObject{of_version}",
        "HEAD": f"s3:GetObject{of_version}",
        "PUT": "s3:PutObject",
        "POST": "s3:PutObject",
        "DELETE": "s3:AbortMultipartUpload" if "uploadId" in query else f"s3:DeleteObject{of_version}",
    }[request.method]
    needs = [Need(action, resource)]
    if request.status == 404 and request.method in ("GET", "HEAD"):
        # Without it S3 answers 403, and what asks whether an object is there takes that for a fault.
        needs.append(Need("s3:ListBucket", bucket, request.key))
    return needs


def _needs_of_bucket(request, bucket):
    if request.method == "POST" and "delete" in request.query:
        return [
            Need(f"s3:DeleteObject{'Version' if version else ''}", f"{bucket}/{key}")
            for key, version in request.deleted
        ]
    assert request.method in ("GET", "HEAD"), request
    if "uploads" in request.query:
        return [Need("s3:ListBucketMultipartUploads", bucket)]
    action = "s3:ListBucketVersions" if "versions" in request.query else "s3:ListBucket"
    unknown = request.query.keys() - _LISTING
    assert not unknown, f"which permission does {request} take?"
    return [Need(action, bucket, request.query.get("prefix"))]


_LISTING = {
    "list-type",
    "prefix",
    "delimiter",
    "max-keys",
    "start-after",
    "continuation-token",
    "encoding-type",
    "fetch-owner",
}
_LISTING |= {"versions", "key-marker", "version-id-marker"}


def grants(statement, need):
    """Whether a statement grants a permission."""
    assert statement["Effect"] == "Allow"
    assert statement.keys() <= {"Sid", "Effect", "Action", "Resource", "Condition"}
    if need.action not in statement["Action"]:
        return False
    if not any(fnmatchcase(need.resource, pattern) for pattern in statement["Resource"]):
        return False
    condition = statement.get("Condition", {})
    if not condition:
        return True
    if condition.keys() != {"StringLike"} or condition["StringLike"].keys() != {"s3:prefix"}:
        return False  # of another service
    patterns = condition["StringLike"]["s3:prefix"]
    return need.prefix is not None and any(fnmatchcase(need.prefix, pattern) for pattern in patterns)


def refused(policy, needs):
    """The permissions that no statement of a policy grants, sorted."""
    return sorted(
        {need for need in needs if not any(grants(one, need) for one in policy["Statement"])},
        key=lambda need: (need.action, need.resource, need.prefix or ""),
    )
