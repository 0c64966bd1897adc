"""Files by URI: a local path or `s3://bucket/key`.

S3 is configured by the standard variables: AWS_ENDPOINT_URL, AWS_REGION or AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, and whatever else the AWS credential chain reads.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import boto3
import pyarrow as pa
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pyarrow import fs

from recipe_ray.cache import cache_folder
from recipe_ray.errors import ConfigError, EditorError, FactError, OutputError
from recipe_ray.published import published_editor
from recipe_ray.store.listing import below, find, odd_part

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import ObjectIdentifierTypeDef

SINGLE_WRITER_VARIABLE = "RECIPE_RAY_SINGLE_WRITER"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
_COPY_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a dump: where it lies, its size in bytes and when it was last changed (UTC).

    `below` is the end of its URI that the source did not name, or named by a glob.
    """

    uri: str
    size_bytes: int
    modified_at: datetime
    below: str = ""


def is_s3(uri: str) -> bool:
    """Whether the URI names an S3 object or prefix."""
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    """Append path segments to a URI."""
    return "/".join((uri.rstrip("/"), *parts))


def absolute(uri: str | Path) -> str:
    """Write a URI as every process may be given it: a local path absolute, S3 without a trailing slash.

    Names are taken as they stand: nothing in them is decoded.

    Raises:
        ConfigError: another scheme than `s3://` or `file://`, or what names no place that can be read.
    """
    text = str(uri)
    shown = text.encode("utf-8", "backslashreplace").decode()
    if "\0" in text or shown != text:
        raise ConfigError(f"{shown!r}: is no name in UTF-8; rename the file, or give another")
    if is_s3(text):
        return _checked_s3(text)
    if text.startswith("file:/"):
        text = _path_of_file_uri(text)
    elif _SCHEME.match(text):
        raise ConfigError(f"{text}: unknown scheme; give a local path or s3://bucket/key")
    if not text:
        raise ConfigError("an empty path was given; give a local path or s3://bucket/key")
    try:
        return os.path.abspath(Path(text).expanduser())  # noqa: PTH100 -- resolve() would replace links that machines share
    except RuntimeError as error:
        raise ConfigError(f"{text}: nobody has that home folder; give a path without ~") from error


def _checked_s3(uri: str) -> str:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not _BUCKET.fullmatch(bucket):
        what = f"{bucket!r} is no bucket's name" if bucket else "names no bucket"
        raise ConfigError(f"{uri}: {what}; give s3://bucket/key")
    if key and (odd := odd_part(key.removesuffix("/"))):
        raise ConfigError(f"{uri}: holds {odd!r}, and no such object can be read or written; give another place")
    return uri.removesuffix("/")


def _path_of_file_uri(uri: str) -> str:
    rest = uri.removeprefix("file:")
    host, slash, path = rest[2:].partition("/") if rest.startswith("//") else ("", "/", rest[1:])
    if host not in ("", "localhost") or not slash:
        raise ConfigError(f"{uri}: names a host ({host!r}) or no path; give file:///path, or the path alone")
    return f"/{path}"


def filesystem(uri: str, *, background_writes: bool = True) -> tuple[fs.FileSystem, str]:
    """Find the pyarrow filesystem of a URI and the path within it.

    Args:
        uri: local or s3://.
        background_writes: whether parts of an upload are sent while the next is being written.
    """
    uri = absolute(uri)
    if not is_s3(uri):
        return fs.LocalFileSystem(), uri
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ("us-east-1" if endpoint else None)
    s3 = fs.S3FileSystem(
        endpoint_override=endpoint,
        region=region,
        background_writes=background_writes,
        connect_timeout=10,
        request_timeout=60,
        # Not the standard strategy: it stops trying again once failures have used up a quota that only successes fill.
        retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=10),
    )
    return s3, uri.removeprefix("s3://")


def single_writer() -> bool:
    """Whether the operator vouches for there being no second writer."""
    return os.environ.get(SINGLE_WRITER_VARIABLE, "") not in ("", "0")


def delta_options(uri: str) -> dict[str, str]:
    """Storage options of `deltalake` for a URI; it reads the AWS variables itself but must be told to speak HTTP."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if not is_s3(uri) or not endpoint:
        return {}
    options = {"AWS_ENDPOINT_URL": endpoint}
    if endpoint.startswith("http://"):
        options["AWS_ALLOW_HTTP"] = "true"
    if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
        options["AWS_REGION"] = "us-east-1"
    return options


def list_files(source: str) -> tuple[SourceFile, ...]:
    """List the files of a dump, sorted by URI.

    A source is one file, a directory or prefix (every file below it), or a glob (`*`, `?` and `[...]`, each within one
    path segment).

    Names that begin with `.` or `_` are left out below a directory, as Hadoop, Spark and Delta do.

    Raises:
        FactError: nothing is there, or it cannot be listed, or one of the files cannot be read by its name.
    """
    filesystem_, path = filesystem(source)
    scheme = "s3://" if is_s3(source) else ""
    try:
        base, infos = find(filesystem_, path)
    except OSError as error:
        raise FactError(f"{source}: cannot be listed ({_reason(error)}); check the path and the credentials") from error
    if not infos:
        raise FactError(f"{source}: no such file, directory or glob match; give JSON Lines (plain or .gz)")
    found = {
        info.path: SourceFile(
            uri=scheme + info.path,
            size_bytes=info.size or 0,
            modified_at=datetime.fromtimestamp((info.mtime_ns or 0) / 1e9, tz=UTC),
            below=info.path[len(base) :].lstrip("/"),
        )
        for info in infos
    }
    if len(found) < len(infos):
        double = next(path for path in found if sum(info.path == path for info in infos) > 1)
        raise FactError(f"{scheme}{double}: is there twice, once with a slash at its end; rename one of the objects")
    return tuple(found[path] for path in sorted(found))


def read_text(uri: str) -> str | None:
    """Read a small text file; None where there is none.

    Raises:
        OutputError: it is there and cannot be read.
    """
    filesystem_, path = filesystem(uri)
    try:
        if filesystem_.get_file_info(path).type != fs.FileType.File:
            return None
        with filesystem_.open_input_stream(path) as stream:
            return stream.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{uri}: cannot be read ({_reason(error)}); check the credentials, or remove it") from error


def write_text(uri: str, text: str) -> None:
    """Write a small text file, whole or not at all, with the directories above it.

    Raises:
        OutputError: the place cannot be written.
    """
    write_whole(uri, text.encode())


def write_whole(uri: str, content: bytes | pa.Buffer) -> None:
    """Write a file, whole or not at all, with the directories above it.

    Raises:
        OutputError: the place cannot be written.
    """
    filesystem_, path = filesystem(uri)
    try:
        # An S3 object appears whole; a local file is written beside its place and moved there.
        written = path if is_s3(uri) else f"{path}.{uuid.uuid4().hex}"
        if not is_s3(uri):
            filesystem_.create_dir(path.rpartition("/")[0], recursive=True)
        try:
            with filesystem_.open_output_stream(written) as stream:
                stream.write(content)
            if written != path:
                filesystem_.move(written, path)
        except OSError:
            if written != path:
                Path(written).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{uri}: cannot be written ({_reason(error)}); give a place you may write to") from error


def is_empty(uri: str) -> bool:
    """Whether no file lies there or below; a file itself is not empty.

    Raises:
        OutputError: the place cannot be read.
    """
    filesystem_, path = filesystem(uri)
    try:
        return filesystem_.get_file_info(path).type != fs.FileType.File and not below(filesystem_, path)
    except OSError as error:
        raise OutputError(f"{uri}: cannot be read ({_reason(error)}); check the path and the credentials") from error


def list_below(uri: str) -> list[str]:
    """URIs of the files below a directory or prefix, sorted; none where there is no such place.

    Raises:
        OutputError: the place cannot be read.
    """
    filesystem_, path = filesystem(uri)
    try:
        found = sorted(info.path for info in below(filesystem_, path))
    except OSError as error:
        raise OutputError(f"{uri}: cannot be read ({_reason(error)}); check the path and the credentials") from error
    return [("s3://" if is_s3(uri) else "") + path for path in found]


def remove_tree(uri: str) -> None:
    """Remove a directory or prefix with all that is below it; nothing happens where there is none.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        if is_s3(uri):
            # Not pyarrow: it would leave a marker where it emptied a directory.
            client, (bucket, prefix) = s3_client(), split_s3(uri)
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
            for page in pages:
                keys: list[ObjectIdentifierTypeDef] = [{"Key": found["Key"]} for found in page.get("Contents", [])]
                if keys and (errors := client.delete_objects(Bucket=bucket, Delete={"Objects": keys}).get("Errors")):
                    raise OSError(f"{errors[0].get('Key')}: {errors[0].get('Message')}")
        else:
            shutil.rmtree(absolute(uri), ignore_errors=not Path(absolute(uri)).exists())
    except (OSError, BotoCoreError, ClientError) as error:
        raise OutputError(f"{uri}: cannot be removed ({_reason(error)}); check the permissions") from error


def remove_empty(uri: str, *, depth: int) -> None:
    """Remove a local directory and those above it, `depth` of them in all, as far as they are empty."""
    path = Path(absolute(uri))
    with contextlib.suppress(OSError):
        for directory in [] if is_s3(uri) else (path, *path.parents)[:depth]:
            directory.rmdir()


def s3_client() -> "S3Client":
    """A client of the S3 that the standard variables name, which tries again for about a minute."""
    return boto3.client("s3", config=Config(connect_timeout=10, retries={"max_attempts": 8, "mode": "standard"}))


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` URI."""
    bucket, _, key = absolute(uri).removeprefix("s3://").partition("/")
    return bucket, key


def check_writable(uri: str) -> None:
    """Refuse a place that cannot be written, before work is spent on it; leaves nothing behind.

    Raises:
        OutputError: with the reason.
    """
    try:
        if is_s3(uri):
            client, (bucket, key) = s3_client(), split_s3(uri)
            key = f"{key}/_probe-{uuid.uuid4().hex}".lstrip("/")
            client.put_object(Bucket=bucket, Key=key)
            client.delete_object(Bucket=bucket, Key=key)
        else:
            with tempfile.TemporaryFile(dir=_nearest_directory(Path(absolute(uri)))):
                pass
    except (OSError, BotoCoreError, ClientError) as error:
        raise OutputError(f"{uri}: cannot be written ({_reason(error)}); give a place you may write to") from error


def localize(uri: str | Path, *, only: Collection[str] | None = None) -> Path:
    """Give a local directory with the content of `uri`: itself where it is local, else a cached download.

    The cache lies in $RECIPE_RAY_CACHE, by default `~/.cache/recipe-ray`. A download is known by the names and ETags
    of its objects and appears whole or not at all, so changed content is fetched anew and processes may race.

    Args:
        uri: a local directory or an S3 prefix.
        only: names of the files that are wanted of it; a download fetches no others.

    Raises:
        EditorError: there is nothing, or it cannot be fetched.
    """
    text = absolute(uri)
    if not is_s3(text):
        if not Path(text).is_dir():
            raise EditorError(f"{uri}: no such directory; give a local directory or s3://bucket/prefix")
        return Path(text)
    filesystem_, prefix = filesystem(text)
    try:
        infos = sorted(below(filesystem_, prefix), key=lambda info: info.path)
        if only is not None:
            infos = [info for info in infos if info.path.rpartition("/")[2] in only]
        if not infos:
            raise EditorError(f"{uri}: nothing is there; give a local directory or s3://bucket/prefix")
        if odd := next((info.path for info in infos if odd_part(info.path.partition("/")[2])), None):
            raise EditorError(f"s3://{odd}: such a key cannot be read; rename the object, or remove it")
        tags = [f"{text} {info.path} {info.size} {_etag(filesystem_, info.path)}" for info in infos]
        target = cache_folder() / hashlib.blake2b("\n".join(tags).encode(), digest_size=16).hexdigest()
        if not target.is_dir():
            _download(filesystem_, prefix, [info.path for info in infos], target)
    except OSError as cause:
        raise EditorError(f"{uri}: cannot be fetched ({_reason(cause)}); check the URI and the credentials") from cause
    return target


def absolute_editor(name: str | Path) -> str:
    """`absolute` of an editor's directory; the name of a published editor, which each machine has, as it is."""
    return absolute(name) if published_editor(name) is None else str(name)


def localize_editor(name: str | Path) -> Path:
    """`localize` of an editor's directory, or the folder of the published editor of that name."""
    return published_editor(name) or localize(name)


def publish(local_dir: Path, uri: str | Path) -> str:
    """Copy a directory to a local path or S3 prefix and return the absolute URI.

    A local copy appears whole. On S3 the JSON files of the directory itself go last, so that a reader who finds the
    description finds the rest; what an upload of the same files that broke off has left there is replaced.

    Raises:
        OutputError: the place holds something else, or cannot be written.
    """
    text = absolute(uri)
    filesystem_, path = filesystem(text)
    files = sorted(_files_of(local_dir), key=lambda file: (file.parent == local_dir and file.suffix == ".json", file))
    names = [file.relative_to(local_dir).as_posix() for file in files]
    try:
        there = {info.path.removeprefix(path).lstrip("/") for info in below(filesystem_, path)}
        broken_off = is_s3(text) and there < set(names) and names[-1] not in there
        if there and not broken_off:
            raise OutputError(f"{uri}: is not empty; give a new place, or remove what is there")
        if is_s3(text):
            for file, name in zip(files, names, strict=True):
                _upload(file, filesystem_, f"{path}/{name}")
        else:
            _copy_whole(local_dir, Path(path))
    except OSError as error:
        raise OutputError(f"{uri}: cannot be written ({_reason(error)}); give a place you may write to") from error
    return text


def _etag(filesystem_: fs.FileSystem, path: str) -> str:
    with filesystem_.open_input_stream(path) as stream:
        tag: bytes = stream.metadata()["ETag"]
    return tag.decode()


def _download(filesystem_: fs.FileSystem, prefix: str, paths: list[str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as scratch:
        whole = Path(scratch) / "whole"
        for path in paths:
            local = whole / path.removeprefix(prefix).lstrip("/")
            local.parent.mkdir(parents=True, exist_ok=True)
            with filesystem_.open_input_stream(path) as source, local.open("wb") as sink:
                shutil.copyfileobj(cast(IO[bytes], source), sink, _COPY_BYTES)
        try:
            whole.rename(target)
        except OSError:
            if not target.is_dir():  # another process may have been first, with the same content
                raise


def _upload(file: Path, filesystem_: fs.FileSystem, path: str) -> None:
    with file.open("rb") as source, filesystem_.open_output_stream(path) as sink:
        shutil.copyfileobj(source, cast(IO[bytes], sink), _COPY_BYTES)


def _copy_whole(local_dir: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".publish-") as scratch:
        shutil.copytree(local_dir, Path(scratch) / "whole")
        (Path(scratch) / "whole").rename(target)


def _files_of(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def _nearest_directory(path: Path) -> Path:
    for ancestor in (path, *path.parents):
        if ancestor.is_dir():
            return ancestor
        if ancestor.exists():
            raise NotADirectoryError(f"{ancestor} is a file")
    return Path("/")


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0][:200]
