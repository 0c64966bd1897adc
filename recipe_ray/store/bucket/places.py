"""Where in a bucket things lie, and what the commands about it are told."""

import re
from dataclasses import dataclass, fields
from typing import Literal

from recipe_ray.errors import ConfigError

Role = Literal["trainer", "ingester", "server", "maintainer"]

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9!_.'()=-]+(/[A-Za-z0-9!_.'()=-]+)*")
_KMS_KEY = re.compile(r"arn:aws[a-z-]*:kms:([a-z0-9-]+):\d{12}:key/[A-Za-z0-9-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketPlaces:
    """A bucket, and below which prefix of it each kind of thing lies.

    Attributes:
        bucket: its name.
        data: edits to train on.
        llms: copies of LLMs and encoders, where nodes reach no hub.
        runs: trainings with their checkpoints, evaluations.
        editors: trained editors.
        dumps: what is ingested.
        facts: tables of facts, with their indexes and quarantine.
        reports: summaries of ingests and builds.
        serving: file of API keys.
    """

    bucket: str
    data: str = "data"
    llms: str = "llms"
    runs: str = "runs"
    editors: str = "editors"
    dumps: str = "dumps"
    facts: str = "facts"
    reports: str = "reports"
    serving: str = "serving"

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.bucket):
            raise ConfigError(
                f"bucket is {self.bucket!r}; give the name alone: 3 to 63 lower letters, digits, dots and hyphens"
            )
        prefixes = self.prefixes()
        for name, prefix in prefixes.items():
            if not _PREFIX.fullmatch(prefix):  # *, ? and ${ would mean more in a policy than they say
                raise ConfigError(
                    f"{name} is {prefix!r}; give a prefix of letters, digits and !_.'()=-, without / at the ends"
                )
            for other, longer in prefixes.items():
                if other != name and f"{longer}/".startswith(f"{prefix}/"):
                    raise ConfigError(
                        f"{other} is {longer!r} and lies within {name} {prefix!r}: who may write one may write both; "
                        "give each its own"
                    )

    def prefixes(self) -> dict[str, str]:
        """Prefix by what lies there."""
        return {field.name: getattr(self, field.name) for field in fields(BucketPlaces) if field.name != "bucket"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketSetup(BucketPlaces):
    """Make a bucket fit: private, encrypted, over TLS alone, versioned, without the remains of broken uploads.

    What is so already is left alone, so the command may be run again. Other rules and statements of the bucket stay.

    Attributes:
        region: where a bucket that is not there is made; the one of the AWS variables if not given.
        kms_key: ARN of a KMS key that objects are encrypted with; S3's own keys if not given.
        keep_versions_days: days that an object can be brought back after it was overwritten or deleted.
        abort_uploads_days: days after which an upload that was never completed is dropped.
        dry_run: change nothing, tell what would be changed.
    """

    region: str | None = None
    kms_key: str | None = None
    keep_versions_days: int = 7
    abort_uploads_days: int = 1
    dry_run: bool = False

    def __post_init__(self) -> None:
        BucketPlaces.__post_init__(self)  # super() does not know a class that slots made anew
        _check_key(self.kms_key)
        for name in ("keep_versions_days", "abort_uploads_days"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 1 or more: S3 counts whole days")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChoice(BucketPlaces):
    """Print the IAM policy of a role, as JSON: what its jobs do on S3, and nothing else.

    Attributes:
        role: trainer (train, evaluate), ingester (ingest, build_index), server (serve), or maintainer (facts.py
            compact, vacuum, erase and the like, keys.py).
        online_writes: the server takes facts over HTTP; without, it can serve a fixed `snapshot` only.
        kms_key: ARN of the bucket's KMS key, if it has one.
        partition: of AWS.
    """

    role: Role
    online_writes: bool = True
    kms_key: str | None = None
    partition: Literal["aws", "aws-cn", "aws-us-gov"] = "aws"

    def __post_init__(self) -> None:
        BucketPlaces.__post_init__(self)
        _check_key(self.kms_key)
        if not self.online_writes and self.role != "server":
            raise ConfigError(f"online_writes is off and role is {self.role}; it is of the server alone, leave it out")


def region_of_key(kms_key: str) -> str:
    """The region that the ARN of a KMS key names."""
    found = _KMS_KEY.fullmatch(kms_key)
    assert found is not None  # the configs checked it
    return found[1]


def _check_key(kms_key: str | None) -> None:
    if kms_key is not None and not _KMS_KEY.fullmatch(kms_key):
        raise ConfigError(f"kms_key is {kms_key!r}; give the key's ARN, arn:aws:kms:REGION:ACCOUNT:key/ID, no alias")
