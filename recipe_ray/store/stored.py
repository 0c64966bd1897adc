"""What lies below a table, hidden names too: listed, read whole, and removed for good."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from botocore.exceptions import BotoCoreError, ClientError
from pyarrow import fs

from recipe_ray.errors import OutputError
from recipe_ray.store.files import SourceFile, absolute, filesystem, is_s3, join, s3_client, split_s3

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import ObjectIdentifierTypeDef

_DELETED_AT_ONCE = 1000  # as many as S3 takes in one request


class Progress(Protocol):
    """Shows a step of long work; the context's value counts it forward."""

    def __call__(self, description: str, total: int, *, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """Begin a step of `total` units."""


@contextmanager
def silent(description: str, total: int, *, unit: str) -> Iterator[Callable[[int], None]]:
    """Show nothing."""
    yield lambda count: None


def list_stored(uri: str) -> list[SourceFile]:
    """Every file below a directory or prefix, sorted by URI; none where there is no such place.

    Raises:
        OutputError: the place cannot be read.
    """
    filesystem_, path = filesystem(uri)
    try:
        infos = filesystem_.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    except OSError as error:
        raise OutputError(f"{uri}: cannot be read ({error}); check the path and the credentials") from error
    return [
        SourceFile(
            uri=("s3://" if is_s3(uri) else "") + info.path,
            size_bytes=info.size or 0,
            modified_at=datetime.fromtimestamp((info.mtime_ns or 0) / 1e9, tz=UTC),
        )
        for info in sorted(infos, key=lambda info: info.path)
        if info.type == fs.FileType.File
    ]


def missing_files(table_uri: str, paths: Sequence[str]) -> list[str]:
    """Those of the paths below a table at which there is no file.

    Raises:
        OutputError: the place cannot be read.
    """
    filesystem_, root = filesystem(table_uri)
    try:
        infos = filesystem_.get_file_info([join(root, path) for path in paths])
    except OSError as error:
        raise OutputError(f"{table_uri}: cannot be read ({error}); check the path and the credentials") from error
    return [path for path, info in zip(paths, infos, strict=True) if info.type != fs.FileType.File]


def remove_files(table_uri: str, paths: Sequence[str]) -> None:
    """Remove files below a table, and local directories that this leaves empty; what is gone already is no fault.

    Raises:
        OutputError: one cannot be removed.
    """
    place, root = table_uri, absolute(table_uri)
    try:
        if is_s3(root):
            bucket, key = split_s3(root)
            _delete(bucket, [{"Key": join(key, path).lstrip("/")} for path in paths])
        else:
            for path in paths:
                place = join(root, path)
                Path(place).unlink(missing_ok=True)
            _remove_empty({Path(root, path).parent for path in paths}, root=Path(root))
    except (OSError, BotoCoreError, ClientError) as error:
        raise OutputError(f"{place}: cannot be removed ({error}); check the permissions, run it again") from error


def purge_object_versions(uri: str) -> int:
    """Delete for good what a bucket with versioning keeps below a prefix beside the objects that are there.

    That is older versions, those of deleted objects with the markers of their deletion, and uploads that broke off.
    Nothing happens on a disk, nor in a bucket without versioning.

    Returns:
        The number of versions and markers deleted.

    Raises:
        OutputError: they cannot be listed or deleted.
    """
    if not is_s3(uri):
        return 0
    bucket, key = split_s3(uri)
    prefix, num_deleted = f"{key}/".lstrip("/"), 0
    client = s3_client()
    try:
        for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix):
            superseded: list[ObjectIdentifierTypeDef] = [
                {"Key": found["Key"], "VersionId": found["VersionId"]}
                for found in page.get("Versions", [])
                if not found["IsLatest"]
            ]
            superseded += [
                {"Key": found["Key"], "VersionId": found["VersionId"]} for found in page.get("DeleteMarkers", [])
            ]
            _delete(bucket, superseded)
            num_deleted += len(superseded)
        for uploads in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
            for upload in uploads.get("Uploads", []):
                client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    except (OSError, BotoCoreError, ClientError) as error:
        raise OutputError(
            f"{uri}: older versions of its objects cannot be deleted ({error}); this takes the permissions "
            "s3:ListBucketVersions and s3:DeleteObjectVersion"
        ) from error
    return num_deleted


def _delete(bucket: str, objects: "Sequence[ObjectIdentifierTypeDef]") -> None:
    client = s3_client()
    for start in range(0, len(objects), _DELETED_AT_ONCE):
        chunk = list(objects[start : start + _DELETED_AT_ONCE])
        answer = client.delete_objects(Bucket=bucket, Delete={"Objects": chunk, "Quiet": True})
        if errors := answer.get("Errors"):
            # The answer is 200 where single objects were refused.
            raise OSError(f"{errors[0].get('Key')}: {errors[0].get('Code')} {errors[0].get('Message')}")


def _remove_empty(directories: set[Path], *, root: Path) -> None:
    for directory in sorted(directories - {root}, reverse=True):
        try:
            directory.rmdir()
        except OSError:  # not empty, or gone
            continue
        _remove_empty({directory.parent}, root=root)


def relative(uri: str, table_uri: str) -> str:
    """The path of a file below a table."""
    return uri.removeprefix(absolute(table_uri)).lstrip("/")
