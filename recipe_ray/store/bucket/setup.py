"""Setting a bucket up, again and again to the same end: what is so already is left alone, what is others' stays."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from recipe_ray.errors import OutputError
from recipe_ray.store.bucket.places import BucketSetup
from recipe_ray.store.files import s3_client

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

RULE = "recipe-ray-old-versions"
STATEMENT = "RecipeRayTlsOnly"
_LASTING = ("data", "llms", "runs", "editors", "facts", "serving")
"""What nothing may expire or archive: a table's log names its files for ever, an editor's card likewise."""
_NOT_OFFERED = ("NotImplemented", "MethodNotAllowed", "501", "405")
_ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A setting that was changed, or would be: its name, and what it is now in words."""

    setting: str
    now: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupReport:
    """What a set-up did, or would do.

    Attributes:
        bucket: its name.
        changes: in their order; none where all was so already.
        attention: what the command does not change and a person should look at.
        dry_run: nothing was changed.
    """

    bucket: str
    changes: tuple[Change, ...]
    attention: tuple[str, ...]
    dry_run: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """One setting of a bucket.

    Attributes:
        name: for people.
        action: the IAM action that changing it takes.
        read: gives it as S3 tells it; raises ClientError.
        absent: S3's word for a bucket without it.
        wanted: of what is there (None for nothing) what should be; None where it is right.
        write: sets it.
        now: says in words what it is then.
    """

    name: str
    action: str
    read: Callable[[], Any]
    absent: str
    wanted: Callable[[Any], Any]
    write: Callable[[Any], Any]
    now: str


def set_up(config: BucketSetup) -> SetupReport:
    """Make the bucket where there is none, and every setting what it should be.

    Raises:
        OutputError: the bucket is another account's, or something may not be read or changed; what was changed by then
            stays, and the same call goes on.
    """
    client, changes, attention = s3_client(), list[Change](), list[str]()
    try:
        exists = _exists(client, config)
        if not exists:
            changes.append(Change(setting="bucket", now=f"made in {_region(client, config)}"))
            if not config.dry_run:
                _create(client, config)
        for setting in _settings(client, config):
            try:
                current = _current(setting) if exists or not config.dry_run else None
                wanted = setting.wanted(current)
                if wanted is None:
                    continue
                if not config.dry_run:
                    setting.write(wanted)
                changes.append(Change(setting=setting.name, now=setting.now))
            except ClientError as error:
                if _code(error) in _NOT_OFFERED:
                    attention.append(
                        f"{setting.name}: this endpoint does not offer it; see to it in the store's own way"
                    )
                    continue
                raise OutputError(
                    f"s3://{config.bucket}: {setting.name} cannot be read or changed ({error}); this takes the "
                    f"permission {setting.action} and the one to read it"
                ) from error
        if exists:
            attention += _look(client, config)
    except (BotoCoreError, ClientError) as error:
        raise OutputError(f"s3://{config.bucket}: cannot be set up ({error}); check name and credentials") from error
    return SetupReport(bucket=config.bucket, changes=tuple(changes), attention=tuple(attention), dry_run=config.dry_run)


def _settings(client: "S3Client", config: BucketSetup) -> list[_Setting]:
    """In an order that leaves no moment open: who may reach it first, what is in it afterwards."""
    bucket: Any = {"Bucket": config.bucket}
    arn = f"arn:{client.meta.partition}:s3:::{config.bucket}"
    private = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    owned = {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    tls = {
        "Sid": STATEMENT,
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [arn, f"{arn}/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    rule = {
        "ID": RULE,
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "NoncurrentVersionExpiration": {"NoncurrentDays": config.keep_versions_days},
        "Expiration": {"ExpiredObjectDeleteMarker": True},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": config.abort_uploads_days},
    }
    return [
        _Setting(
            name="public access",
            action="s3:PutBucketPublicAccessBlock",
            read=lambda: client.get_public_access_block(**bucket)["PublicAccessBlockConfiguration"],
            absent="NoSuchPublicAccessBlockConfiguration",
            wanted=lambda current: None if _holds(current, private) else private,
            write=lambda value: client.put_public_access_block(**bucket, PublicAccessBlockConfiguration=value),
            now="blocked in all four ways",
        ),
        _Setting(
            name="ownership",
            action="s3:PutBucketOwnershipControls",
            read=lambda: client.get_bucket_ownership_controls(**bucket)["OwnershipControls"],
            absent="OwnershipControlsNotFoundError",
            wanted=lambda current: None if _holds(current, owned) else owned,
            write=lambda value: client.put_bucket_ownership_controls(**bucket, OwnershipControls=value),
            now="the bucket's owner owns every object, ACLs do not count",
        ),
        _Setting(
            name="policy",
            action="s3:PutBucketPolicy",
            read=lambda: json.loads(client.get_bucket_policy(**bucket)["Policy"]),
            absent="NoSuchBucketPolicy",
            wanted=lambda current: _with_statement(current, tls),
            write=lambda value: client.put_bucket_policy(**bucket, Policy=json.dumps(value)),
            now="requests without TLS are refused",
        ),
        _Setting(
            name="encryption",
            action="s3:PutEncryptionConfiguration",
            read=lambda: client.get_bucket_encryption(**bucket)["ServerSideEncryptionConfiguration"],
            absent="ServerSideEncryptionConfigurationNotFoundError",
            wanted=lambda current: _encryption(current, config.kms_key),
            write=lambda value: client.put_bucket_encryption(**bucket, ServerSideEncryptionConfiguration=value),
            now=f"objects are encrypted with {config.kms_key or 'keys of S3 (AES256)'}",
        ),
        _Setting(
            name="versioning",
            action="s3:PutBucketVersioning",
            read=lambda: client.get_bucket_versioning(**bucket).get("Status"),
            absent="",
            wanted=lambda current: None if current == "Enabled" else {"Status": "Enabled"},
            write=lambda value: client.put_bucket_versioning(**bucket, VersioningConfiguration=value),
            now="what is overwritten or deleted can be brought back",
        ),
        _Setting(
            name="lifecycle",
            action="s3:PutLifecycleConfiguration",
            read=lambda: client.get_bucket_lifecycle_configuration(**bucket)["Rules"],
            absent="NoSuchLifecycleConfiguration",
            wanted=lambda current: _with_rule(current, rule),
            write=lambda value: client.put_bucket_lifecycle_configuration(**bucket, LifecycleConfiguration=value),
            now=f"older versions go after {config.keep_versions_days} days, broken uploads after "
            f"{config.abort_uploads_days}",
        ),
    ]


def _current(setting: _Setting) -> Any:
    try:
        return setting.read()
    except ClientError as error:
        if _code(error) == setting.absent:
            return None
        raise


def _encryption(current: Any, kms_key: str | None) -> Any:
    """Without a key any encryption will do: one by KMS that is there is better than what we would set."""
    defaults = [rule.get("ApplyServerSideEncryptionByDefault", {}) for rule in (current or {}).get("Rules", [])]
    if kms_key is None:
        if any(default.get("SSEAlgorithm") for default in defaults):
            return None
        return {"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]}
    wanted = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": kms_key}
    if any(_holds(default, wanted) for default in defaults):
        return None
    # A key for the bucket: KMS is not asked, and paid, for each object.
    return {"Rules": [{"ApplyServerSideEncryptionByDefault": wanted, "BucketKeyEnabled": True}]}


def _with_statement(current: Any, statement: Mapping[str, Any]) -> Any:
    document = current or {"Version": "2012-10-17", "Statement": []}
    said = document["Statement"] if isinstance(document["Statement"], list) else [document["Statement"]]
    if statement in said:
        return None
    return {**document, "Statement": [*(one for one in said if one.get("Sid") != STATEMENT), statement]}


def _with_rule(current: Any, rule: Mapping[str, Any]) -> Any:
    rules = current or []
    if any(_holds(one, rule) for one in rules):
        return None
    return {"Rules": [*(one for one in rules if one.get("ID") != RULE), rule]}


def _holds(current: Any, wanted: Any) -> bool:
    """Whether all that is wanted is so; S3 may tell more beside."""
    if isinstance(wanted, Mapping):
        return isinstance(current, Mapping) and all(_holds(current.get(name), wanted[name]) for name in wanted)
    if isinstance(wanted, list):
        return isinstance(current, list) and len(current) == len(wanted) and all(map(_holds, current, wanted))
    return bool(current == wanted)


def _look(client: "S3Client", config: BucketSetup) -> list[str]:
    """What others set and would hurt the table."""
    try:
        rules: Any = client.get_bucket_lifecycle_configuration(Bucket=config.bucket)["Rules"]
    except ClientError as error:
        if _code(error) not in ("NoSuchLifecycleConfiguration", *_NOT_OFFERED):
            raise
        rules = []
    found = []
    for rule in rules:
        named = rule.get("Filter", {})
        prefix = named.get("Prefix", named.get("And", {}).get("Prefix", rule.get("Prefix", "")))
        places = [
            place
            for name, place in config.prefixes().items()
            if name in _LASTING and (f"{place}/".startswith(prefix) or prefix.startswith(f"{place}/"))
        ]
        if rule.get("Status") == "Enabled" and rule.get("ID") != RULE and places and _takes_away(rule):
            found.append(
                f"lifecycle rule {rule.get('ID', '')!r} expires or archives objects below {', '.join(places)}, which "
                "are needed as long as they are named there; give it a prefix of what may go"
            )
    try:
        client.get_object_lock_configuration(Bucket=config.bucket)
        found.append("object lock is on: `facts.py erase` cannot delete a version before its retention ends")
    except ClientError as error:
        if _code(error) not in ("ObjectLockConfigurationNotFoundError", "AccessDenied", *_NOT_OFFERED):
            raise
    return found


def _takes_away(rule: Mapping[str, Any]) -> bool:
    expiration = rule.get("Expiration", {})
    archived = any(one.get("StorageClass") in _ARCHIVES for one in rule.get("Transitions", []))
    return "Days" in expiration or "Date" in expiration or archived


def _exists(client: "S3Client", config: BucketSetup) -> bool:
    try:
        client.head_bucket(Bucket=config.bucket)
    except ClientError as error:
        if _code(error) in ("404", "NoSuchBucket"):
            return False
        if _code(error) in ("403", "AccessDenied"):
            raise OutputError(
                f"s3://{config.bucket}: may not be looked at; the name belongs to another account, or the credentials "
                "lack s3:ListBucket on it"
            ) from error
        raise
    return True


def _create(client: "S3Client", config: BucketSetup) -> None:
    region = _region(client, config)
    in_region = boto3.client("s3", region_name=region)
    # us-east-1 is where S3 makes a bucket that names no place, and must not be named.
    place: Any = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    in_region.create_bucket(Bucket=config.bucket, **place)
    client.get_waiter("bucket_exists").wait(Bucket=config.bucket)


def _region(client: "S3Client", config: BucketSetup) -> str:
    return config.region or client.meta.region_name


def _code(error: ClientError) -> str:
    return str(error.response["Error"]["Code"])
