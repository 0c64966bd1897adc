"""Make and take back API keys: `python jobs/keys.py COMMAND --keys FILE`.

A server that was given the file follows it within seconds. Exit status: 0 done, 1 failed (one line on standard error),
64 a wrong command line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Union

import tyro
from pydantic import ValidationError

from jobs._cli import run
from jobs._facts import Command, say, say_json, show
from recipe_ray.errors import ConfigError
from recipe_ray.store.files import read_text
from serving.keys import Key, Keyring, Scope, digest_of, locked, new_secret, read_keyring, write_keyring

_COLUMNS = ("id", "scopes", "namespaces", "models", "concurrency", "created_at", "expires_at")

KeyId = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysArgs:
    """Which file, and how to answer.

    Attributes:
        keys: the key file, JSON or YAML by its name, local or s3://.
        json: answer in JSON.
    """

    keys: str
    json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(KeysArgs):
    """Make a key, and the file where there is none. The key is printed once and kept nowhere.

    Attributes:
        key_id: names the key in logs and here.
        scopes: what it may do; admin is all of it.
        namespaces: whose facts; `*` for all.
        models: which models; all if not given.
        concurrency: requests at a time; what the service allows if not given.
        expires_at: from when on it is refused, ISO 8601; never if not given.
    """

    key_id: KeyId
    scopes: tuple[Scope, ...] = ("infer",)
    namespaces: tuple[str, ...]
    models: tuple[str, ...] | None = None
    concurrency: int | None = None
    expires_at: str | None = None

    def run(self) -> None:
        """Make it."""
        everything = self.namespaces == ("*",)
        if "*" in self.namespaces and not everything:
            raise ConfigError("namespaces is '*' and others; give '*' alone for all of them")
        secret = new_secret()
        row = {
            "id": self.key_id,
            "sha256": digest_of(secret),
            "scopes": self.scopes,
            "namespaces": "*" if everything else self.namespaces,
            "models": self.models,
            "concurrency": self.concurrency,
            "created_at": _now(),
            "expires_at": self.expires_at and _moment(self.expires_at),
        }
        try:
            key = Key.model_validate(row)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, fault["loc"]))
            raise ConfigError(f"{place}: {fault['msg']}; correct it") from error

        def add(keys: tuple[Key, ...]) -> tuple[Key, ...]:
            if any(other.id == key.id for other in keys):
                raise ConfigError(f"{self.keys}: there is a key {key.id!r}; rotate it, revoke it, or give another id")
            return (*keys, key)

        _change(self.keys, add, may_be_new=True)
        _say_secret(self, secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class List(KeysArgs):
    """List keys and what they may do; the keys themselves are kept nowhere."""

    def run(self) -> None:
        """List."""
        keys = read_keyring(self.keys).keys
        rows = [_row(key, as_json=self.json) for key in keys]
        num_expired = sum(key.expires_at is not None and key.expires_at <= _now() for key in keys)
        show(
            rows,
            _COLUMNS,
            as_json=self.json,
            summary={"keys": len(keys), "expired": num_expired},
            said=f"{self.keys}: {len(keys)} keys, {num_expired} of them expired",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke(KeysArgs):
    """Take a key back, also one that was rotated and is still taken.

    Attributes:
        key_id: as `list` tells it.
    """

    key_id: KeyId

    def run(self) -> None:
        """Take it back."""

        def revoke(keys: tuple[Key, ...]) -> tuple[Key, ...]:
            _find(self.keys, keys, self.key_id)
            return tuple(key for key in keys if key.id != self.key_id)

        _change(self.keys, revoke)
        if self.json:
            say_json({"id": self.key_id, "revoked": True})
        else:
            say(f"{self.keys}: key {self.key_id} is revoked; servers refuse it within seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotate(KeysArgs):
    """Replace a key by a new one that may do the same. The new one is printed once and kept nowhere.

    Attributes:
        key_id: as `list` tells it.
        keep_hours: how long the old key is still taken; 0 ends it at once.
    """

    key_id: KeyId
    keep_hours: float = 24.0

    def run(self) -> None:
        """Replace it."""
        if not 0 <= self.keep_hours <= 24 * 366:
            raise ConfigError(f"keep_hours is {self.keep_hours:g}; give 0 to {24 * 366}")
        secret = new_secret()

        def rotate(keys: tuple[Key, ...]) -> tuple[Key, ...]:
            old = _find(self.keys, keys, self.key_id)
            update: dict[str, Any] = {"sha256": digest_of(secret), "created_at": _now()}
            if self.keep_hours:
                update["previous_sha256"] = old.sha256
                update["previous_expires_at"] = _now() + timedelta(hours=self.keep_hours)
            else:
                update["previous_sha256"] = update["previous_expires_at"] = None
            return tuple(key.model_copy(update=update) if key is old else key for key in keys)

        _change(self.keys, rotate)
        _say_secret(self, secret)


COMMANDS: dict[str, type[Command]] = {"add": Add, "list": List, "revoke": Revoke, "rotate": Rotate}


def main(command: Command) -> None:
    """Make and take back API keys. `COMMAND --help` tells a command's flags."""
    command.run()


def command_type() -> Any:
    """What tyro parses into: any of the commands, as a subcommand."""
    named = tuple(Annotated[command, tyro.conf.subcommand(name)] for name, command in COMMANDS.items())
    together: Any = Union[named]  # noqa: UP007 -- made of what the dictionary holds
    for marker in (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff):
        together = marker[together]
    return together


def _change(uri: str, change: Callable[[tuple[Key, ...]], tuple[Key, ...]], *, may_be_new: bool = False) -> None:
    with locked(uri):
        is_new = may_be_new and read_text(uri) is None
        keys = () if is_new else read_keyring(uri).keys
        write_keyring(uri, Keyring(change(keys)))


def _find(uri: str, keys: tuple[Key, ...], key_id: str) -> Key:
    for key in keys:
        if key.id == key_id:
            return key
    raise ConfigError(f"{uri}: there is no key {key_id!r}; `list` tells the ids")


def _say_secret(args: Add | Rotate, secret: str) -> None:
    if args.json:
        say_json({"id": args.key_id, "key": secret})
    else:
        say(secret)


def _row(key: Key, *, as_json: bool) -> dict[str, Any]:
    row = {name: getattr(key, name) for name in _COLUMNS}
    if not as_json:
        for name in ("scopes", "namespaces", "models"):
            row[name] = ", ".join(row[name]) if isinstance(row[name], tuple) else row[name]
    return row | {"previous_expires_at": key.previous_expires_at}


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"expires_at is {text!r}; give ISO 8601, such as 2026-01-31T08:00:00Z") from error


if __name__ == "__main__":
    run(main, command_type())
