"""Arguments of a config file: what stands after the colon in `--config=FILE.py:name=value,flag`."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Parses `name=value,flag` against defaults, whose types the values take.

    Args:
      arg: the string after the colon; None or "" gives the defaults.
      **defaults: every known name with its default; a bool may be given as a bare name.

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
