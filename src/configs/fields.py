"""What a config file needs to take arguments and defaults; imports no part that needs jax."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from ml_collections import ConfigDict, config_dict


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Parses what stands after the colon in `--config=FILE.py:name=value,flag`.

    Args:
      arg: the string after the colon; None or "" gives the defaults.
      **defaults: every known name with its default, whose type the value takes; a bool may be given
        as a bare name.

    Raises:
      ValueError: an unknown name, or a value that is not of its default's type.
    """
    values = ConfigDict(defaults)
    for part in (arg or "").split(","):
        if not part:
            continue
        name, _, text = part.partition("=")
        if name not in defaults:
            raise ValueError(f"config argument {name!r} is unknown; known: {', '.join(defaults)}")
        kind = type(defaults[name])
        if kind is bool:
            if text.lower() not in ("", "true", "false", "1", "0"):
                raise ValueError(f"config argument {name}={text} must be true or false")
            values[name] = text.lower() in ("", "true", "1")
            continue
        try:
            values[name] = kind(text)
        except ValueError as error:
            raise ValueError(
                f"config argument {name}={text} must be of type {kind.__name__}"
            ) from error
    return values


def add_fields(values: ConfigDict, kind: type) -> None:
    """Adds the fields of a dataclass that have a default and that `values` leaves out."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.default_factory is not dataclasses.MISSING:
            add_field(values, field.name, field.default_factory())
        elif dataclasses.is_dataclass(field.default):
            add_field(values, field.name, dataclasses.asdict(field.default))
        elif isinstance(hints[field.name], types.UnionType):  # X | None, of type X once it is set
            type_x = typing.get_args(hints[field.name])[0]
            unset = config_dict.placeholder(typing.get_origin(type_x) or type_x)
            add_field(values, field.name, unset)
        elif field.default is not dataclasses.MISSING:
            add_field(values, field.name, field.default)


def add_field(owner: ConfigDict, name: str, value: Any) -> None:
    """Adds one field; of a dict only what `owner` leaves out of it."""
    if name not in owner:
        owner[name] = ConfigDict(value) if isinstance(value, dict) else value
    elif isinstance(value, dict):
        for key, item in value.items():
            add_field(owner[name], key, item)
