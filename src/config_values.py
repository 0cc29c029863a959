"""Nested mappings -> frozen dataclasses, naming the dotted path of whatever does not fit."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any


def build(kind: type, values: Any, path: str) -> Any:
    """Makes a dataclass of a mapping, with the dataclasses, mappings and tuples inside it.

    Args:
      kind: the dataclass; its annotations say what each field takes.
      values: a mapping of its fields, or an instance of `kind`, which is returned as it is.
      path: dotted name of the mapping for messages, e.g. "config".

    Raises:
      ValueError: a field is unknown, missing or of another type.
    """
    if isinstance(values, kind):
        return values
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} must be a mapping of fields, got {type(values).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise unknown_field(f"{path}.{key}", key, list(fields))
    made = {key: _convert(hints[key], value, f"{path}.{key}") for key, value in values.items()}
    no_default = dataclasses.MISSING
    for name, field in fields.items():
        if name not in made and field.default is no_default and field.default_factory is no_default:
            raise ValueError(f"{path}.{name} is missing")
    return kind(**made)


def flatten(values: Any, path: str) -> dict[str, str]:
    """Every field of nested mappings by its dotted name, as JSON: equal text for equal values.

    Args:
      values: the mappings.
      path: what the names begin with, e.g. "config".
    """
    if not isinstance(values, Mapping) or not values:
        return {path: json.dumps(values, default=str)}
    found = {}
    for key, inner in values.items():
        found |= flatten(inner, f"{path}.{key}")
    return found


def unknown_field(path: str, key: str, known: list[str]) -> ValueError:
    """The error for a field that does not exist, with the closest one that does."""
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
    return ValueError(f"{path} is no field{hint}")


def require(condition: bool, path: str, value: Any, remedy: str = "") -> None:
    """Raises the ValueError of a value that is out of range."""
    if not condition:
        raise ValueError(f"{path} = {value!r} is out of range{remedy and f': {remedy}'}")


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, types.UnionType):  # X | None, or dataclasses that are made already
        if dataclasses.is_dataclass(value) and isinstance(value, hint):
            return value
        return None if value is None else _convert(args[0], value, path)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)
    if origin is not None and issubclass(origin, Mapping):
        return {key: _convert(args[1], item, f"{path}.{key}") for key, item in dict(value).items()}
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ValueError(f"{path} = {value!r} must be a list")
        return tuple(_freeze(item) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{path} = {value!r} must be of type {hint.__name__}")
    return value


def _freeze(value: Any) -> Any:
    return tuple(map(_freeze, value)) if isinstance(value, (list, tuple)) else value
