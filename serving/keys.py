"""API keys: a file of their hashes with what each may do, read anew when it changes.

A key is `rr_` and 32 random bytes. The file holds its SHA-256 without a salt: salts and slow hashes protect passwords,
which people choose and tables list; of 256 random bits there is no table, and nobody tries them out. A key is found by
its hash, so how long that takes tells of the hash alone, from which no key follows.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import ipaddress
import json
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from recipe_ray import strict_json
from recipe_ray.errors import ConfigError, OutputError, RecipeError
from recipe_ray.store.files import absolute, is_s3, read_text, write_text

Scope = Literal["infer", "facts:read", "facts:write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "rr_"
RELOAD_S = 10.0
_PATIENCE_S = 2.0  # of requests, for a storage that does not answer; they go on with the keys known
_RANDOM_BYTES = 32
_YAML_SUFFIXES = (".yaml", ".yml")

logger = logging.getLogger(__name__)


def _one_line(value: str) -> str:
    if not value or value != " ".join(value.split()):
        raise ValueError("is empty, or holds white space at an end or twice; a namespace is stored without")
    return value


Namespace = Annotated[str, AfterValidator(_one_line)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Key(BaseModel):
    """One key, as the file tells it.

    Attributes:
        id: names it in logs and to `jobs/keys.py`.
        sha256: of the whole key, in lower hexadecimal digits.
        scopes: what it may do; `admin` is all of it.
        namespaces: whose facts, or "*" for all.
        models: which models; None for all.
        concurrency: requests at a time; None for what the service allows.
        created_at: for people.
        expires_at: from when on it is refused; None for never.
        previous_sha256, previous_expires_at: the key before the last rotation, and until when it is still taken.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
    sha256: Digest
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    namespaces: Literal["*"] | Annotated[tuple[Namespace, ...], Field(min_length=1)]
    models: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    concurrency: Annotated[int, Field(ge=1)] | None = None
    created_at: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None
    previous_sha256: Digest | None = None
    previous_expires_at: AwareDatetime | None = None

    @model_validator(mode="after")
    def _previous_ends(self) -> Self:
        if (self.previous_sha256 is None) != (self.previous_expires_at is None):
            raise ValueError("previous_sha256 and previous_expires_at go together; give both or neither")
        return self


class Keyring:
    """Keys by their hashes.

    Raises:
        ConfigError: two keys of one id, or of one hash.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = tuple(keys)
        self._by_digest: dict[str, tuple[Key, datetime | None]] = {}
        ids = [key.id for key in keys]
        if doubled := sorted({key_id for key_id in ids if ids.count(key_id) > 1}):
            raise ConfigError(f"two keys have the id {doubled[0]!r}; give each its own")
        for key in keys:
            self._enter(key.sha256, key, key.expires_at)
            if key.previous_sha256 and key.previous_expires_at:
                until = min(key.previous_expires_at, key.expires_at or key.previous_expires_at)
                self._enter(key.previous_sha256, key, until)

    def find(self, secret: str, now: datetime) -> Key | None:
        """The key that this is; None where it is none, or not anymore."""
        key, until = self._by_digest.get(digest_of(secret), (None, None))
        return None if until is not None and until <= now else key

    def _enter(self, digest: str, key: Key, until: datetime | None) -> None:
        if digest in self._by_digest:
            raise ConfigError(f"key {key.id!r} has the hash of {self._by_digest[digest][0].id!r}; make it anew")
        self._by_digest[digest] = (key, until)


def new_secret() -> str:
    """Make a key, which is shown once and kept nowhere."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest_of(secret: str) -> str:
    """What the file holds of a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def read_keyring(uri: str) -> Keyring:
    """Read a key file.

    Raises:
        ConfigError: there is none, or it is no key file.
        OutputError: it cannot be read.
    """
    return _parse(_text_of(uri), uri)


def write_keyring(uri: str, keyring: Keyring) -> None:
    """Write a key file, whole or not at all; a local one is for its owner alone (mode 600). YAML loses its comments.

    Raises:
        OutputError: the place cannot be written.
    """
    rows = [key.model_dump(mode="json", exclude_none=True) for key in keyring.keys]
    if uri.endswith(_YAML_SUFFIXES):
        text = yaml.safe_dump({"keys": rows}, sort_keys=False, allow_unicode=True)
    else:
        text = json.dumps({"keys": rows}, indent=2, ensure_ascii=False) + "\n"
    if is_s3(uri):
        write_text(uri, text)
        return
    path = Path(absolute(uri)).resolve()  # a link stays one
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            Path(scratch).replace(path)
        except OSError:
            Path(scratch).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{uri}: cannot be written ({error.strerror}); give a place you may write to") from error


@contextlib.contextmanager
def locked(uri: str) -> Iterator[None]:
    """Keep other writers of a local key file waiting; on S3 the last of several at a time wins.

    Raises:
        OutputError: the place cannot be written.
    """
    if is_s3(uri):
        yield
        return
    directory = Path(absolute(uri)).resolve().parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{uri}: cannot be written ({error.strerror}); give a place you may write to") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class KeyFile:
    """The keys of a file, at most `reload_s` old.

    A file that is gone, broken or out of reach later changes nothing: the last keys known go on to hold, each until it
    expires, and the log tells of the fault.

    Args:
        uri: local or s3://.
        reload_s: seconds after which a request has the file looked at again.

    Raises:
        ConfigError, OutputError: as `read_keyring`.
    """

    def __init__(self, uri: str, *, reload_s: float = RELOAD_S) -> None:
        self._uri = uri
        self._reload_s = reload_s
        self._text = _text_of(uri)
        self._keyring = _parse(self._text, uri)
        self._looked_at = self._began = time.monotonic()
        self._looking: asyncio.Task[None] | None = None

    async def keyring(self) -> Keyring:
        """The keys as they are now."""
        if self._looking is None or self._looking.done():
            if time.monotonic() - self._looked_at < self._reload_s:
                return self._keyring
            self._began = time.monotonic()
            self._looking = asyncio.create_task(self._look())
        await asyncio.wait([self._looking], timeout=max(0.0, self._began + _PATIENCE_S - time.monotonic()))
        return self._keyring

    async def _look(self) -> None:
        try:
            text = await asyncio.to_thread(_text_of, self._uri)
            if text != self._text:
                self._keyring = _parse(text, self._uri)
                self._text = text
                logger.info("%s: %d keys read", self._uri, len(self._keyring.keys))
        except RecipeError as error:
            logger.error("the keys known before go on to hold: %s", error)
        finally:
            self._looked_at = time.monotonic()


def check_exposure(host: str, keys: str | None, *, open: bool) -> None:  # noqa: A002 -- the operator's word
    """Refuse to listen where others can reach it, with everything allowed to everybody.

    Args:
        host: address listened on.
        keys: key file, read once to see that it can be; None for no keys.
        open: the operator says that something in front asks for a login.

    Raises:
        ConfigError: no keys on an address that other machines reach; or the key file cannot be used.
        OutputError: the key file cannot be read.
    """
    if keys is not None:
        if open:
            raise ConfigError(f"keys is {keys}, but open says that everybody may do everything; give one of them")
        read_keyring(keys)
    elif not open and not _is_loopback(host):
        raise ConfigError(
            f"host is {host}, which other machines reach, and there are no keys: everybody could read and change all "
            "facts; give keys (python jobs/keys.py add makes them), or host 127.0.0.1, or open where something in "
            "front asks for a login"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name, which may be that of any address
        return False


def _text_of(uri: str) -> str:
    text = read_text(uri)
    if text is None:
        raise ConfigError(f"{uri}: no such key file; python jobs/keys.py add makes one")
    return text


class _YamlLoader(yaml.SafeLoader):
    """Takes no field of a mapping twice, of which PyYAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [name.value for name, _ in node.value]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise strict_json.DoubledFieldError(name)
        return super().construct_mapping(node, deep=deep)


def _parse(text: str, uri: str) -> Keyring:
    try:
        # A YAML loader of PyYAML's safe kind, whatever its name.
        content: Any = yaml.load(text, Loader=_YamlLoader) if uri.endswith(_YAML_SUFFIXES) else strict_json.parse(text)
    except strict_json.DoubledFieldError as error:
        raise ConfigError(f"{uri}: {error}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        # The parsers' own words may quote the file.
        raise ConfigError(f"{uri}: neither JSON nor YAML as its name says; correct it") from error
    rows = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(rows, list) or set(content) != {"keys"}:
        raise ConfigError(f'{uri}: no key file; give {{"keys": [{{"id": …, "sha256": …, "scopes": …, …}}, …]}}')
    keys = []
    for number, row in enumerate(rows):
        try:
            keys.append(Key.model_validate(row))
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in ("keys", number, *fault["loc"]))
            raise ConfigError(f"{uri}: {place}: {fault['msg']}; correct it") from error
    try:
        return Keyring(keys)
    except ConfigError as error:
        raise ConfigError(f"{uri}: {error}") from error
