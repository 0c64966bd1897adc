"""Settings of a configuration as a command line gives them: texts, each `NAME=VALUE`."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from recipe_ray.errors import ConfigError
from recipe_ray.strict_json import fault_of, parse

Config = TypeVar("Config")
_SHOWN_CHARS = 60


def changed(config: Config, settings: Sequence[str], *, prefix: str = "") -> Config:
    """A configuration, a dataclass, with some of its settings given; a value is JSON, or else a text.

    Args:
        config: to start from.
        settings: each `NAME=VALUE`, a part of a part by dots: `losses.margin=1.2`.
        prefix: before the names, for messages.

    Raises:
        ConfigError: an unknown setting, a value of another type, or one that cannot be.
    """
    if not settings:
        return config
    values = dataclasses.asdict(config)  # type: ignore[call-overload]
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"set is {prefix + setting!r}; give {prefix}NAME=VALUE")
        *folders, last = name.split(".")
        place: Any = values
        for folder in folders:
            place = place.get(folder) if isinstance(place, Mapping) else None
        if not isinstance(place, Mapping) or last not in place:
            there = ", ".join(_names(values, prefix))
            raise ConfigError(f"set names {prefix + name!r}, which is no setting; there are {there}")
        place[last] = _value(text)  # type: ignore[index]
    try:
        return TypeAdapter(type(config)).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = prefix + ".".join(map(str, first["loc"]))
        raise ConfigError(f"set gives {where} {first['input']!r}: {first['msg'].lower()}") from error


def _value(text: str) -> Any:
    """JSON as it is, and what is none as a text.

    Raises:
        ConfigError: it is JSON of which a part would be dropped, or too much of it.
    """
    try:
        return parse(text)
    except json.JSONDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"set gives {text[:_SHOWN_CHARS]!r}: {fault_of(text, error)}") from error


def _names(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, value in values.items():
        names += _names(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [prefix + name]
    return names
