"""How the plugin was set up: its own options, and the published LLAVA_CODEC_* variables.

The published code reads some of the variables, prints others and ignores one. Here they are other
spellings of options: each has its effect, or is refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...codec.llava.options import MosaicOptions
from ..mcq.sources import ON_MISS

PREFIX = "LLAVA_CODEC_"
DEBUG = ("0", "1", "all")

_NUMBERS = {
    "LLAVA_CODEC_NUM_IMAGES": "num_images",
    "LLAVA_CODEC_SQUARE_SIZE": "size",
    "LLAVA_CODEC_PATCH_SIZE": "patch",
    "LLAVA_CODEC_SEQ_LEN_FRAMES": "num_frames",
}
_KNOWN = {
    *_NUMBERS,
    "LLAVA_CODEC_USE_OFFLINE",
    "LLAVA_CODEC_OFFLINE_ROOT",
    "LLAVA_CODEC_VISIDX_MODE",
    "LLAVA_CODEC_DEBUG",
}
_SWITCH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_POLICIES = {"pack_topk": "top_k"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the visuals, as it was stated.

    Attributes:
      assets: folders that hold assets, in the order in which they are looked through.
      video_roots: folders that the videos' paths are relative to, besides those that the assets
        and the table of tasks know.
      on_miss: "error", "pack" or "frames", as in `mcq.sources.Sources`.
      stated: options of the mosaics: name -> (value, who says so). Others are as in the assets.
      debug: "0"; "1": a line for each video that is no hit; "all": for each video.
    """

    assets: tuple[str, ...] = ()
    video_roots: tuple[str, ...] = ()
    on_miss: str = "error"
    stated: Mapping[str, tuple[Any, str]] = dataclasses.field(default_factory=dict)
    debug: str = "0"

    def apply(self, options: MosaicOptions) -> MosaicOptions:
        """Options with those that were stated in their places.

        Raises:
          ValueError: they cannot work.
        """
        values = {name: value for name, (value, _) in self.stated.items()}
        if "policy" in values:
            policy = values.pop("policy")
            config = dataclasses.replace(options.config, policy=policy, policy_arg=None)
            options = dataclasses.replace(options, config=config)
        return dataclasses.replace(options, **values)

    def differing(self, told: Mapping[str, Any]) -> list[str]:
        """What was stated and is otherwise in assets.

        Args:
          told: `config` of their meta.json, or `cfg` of that of published assets.
        """
        found = []
        for name, (value, source) in self.stated.items():
            has = _told(told, name)
            if has != value:
                there = "state none" if has is None else f"have {has}"
                found.append(f"{source} says {name} = {value}, but the assets {there}")
        return found


def read_settings(
    environ: Mapping[str, str],
    *,
    assets: str | None = None,
    video_root: str | None = None,
    on_miss: str = "error",
    debug: str | int | None = None,
    **mosaics: int | None,
) -> Settings:
    """Options and variables as one.

    Args:
      environ: the environment; an empty variable counts as not set.
      assets, video_root: folders, several with colons.
      on_miss: see `Settings`.
      debug: 0, 1 or all.
      mosaics: num_images, size, patch, num_frames; None: not stated.

    Raises:
      ValueError: an unknown variable or value, or two spellings that contradict each other.
    """
    told = {n: v for n, v in environ.items() if n.startswith(PREFIX) and v.strip()}
    unknown = sorted(told.keys() - _KNOWN)
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: no such variable; there are {', '.join(sorted(_KNOWN))}"
        )
    if on_miss not in ON_MISS:
        raise ValueError(f"on_miss = {on_miss!r} must be one of {', '.join(ON_MISS)}")
    stated: dict[str, tuple[Any, str]] = {
        name: (_number(name, value), f"option {name}")
        for name, value in mosaics.items()
        if value is not None
    }
    for variable, name in _NUMBERS.items():
        if variable in told:
            value = _number(variable, told[variable])
            _agree(stated.get(name), value, variable)
            stated[name] = (value, variable)
    if "size" in stated:
        stated["geometry"] = ("square", stated["size"][1])
    mode = told.get("LLAVA_CODEC_VISIDX_MODE")
    if mode is not None:
        if mode not in _POLICIES:
            raise ValueError(
                f"LLAVA_CODEC_VISIDX_MODE = {mode!r} must be {' or '.join(_POLICIES)}: other modes "
                "have no counterpart"
            )
        stated["policy"] = (_POLICIES[mode], "LLAVA_CODEC_VISIDX_MODE")
    return Settings(
        _assets(assets, told),
        _folders(video_root),
        on_miss,
        stated,
        _debug(debug, told.get("LLAVA_CODEC_DEBUG")),
    )


def _assets(assets: str | None, told: Mapping[str, str]) -> tuple[str, ...]:
    given, root = _folders(assets), _folders(told.get("LLAVA_CODEC_OFFLINE_ROOT"))
    if given and root and given != root:
        raise ValueError(
            f"assets = {':'.join(given)}, but LLAVA_CODEC_OFFLINE_ROOT = {':'.join(root)}: give one"
        )
    folders, switch = given or root, told.get("LLAVA_CODEC_USE_OFFLINE")
    if switch is None:
        return folders
    if switch.lower() not in _SWITCH:
        raise ValueError(f"LLAVA_CODEC_USE_OFFLINE = {switch!r} must be 1 or 0")
    if _SWITCH[switch.lower()] and not folders:
        raise ValueError(
            f"LLAVA_CODEC_USE_OFFLINE = {switch}, but no assets are named: set "
            "LLAVA_CODEC_OFFLINE_ROOT"
        )
    if not _SWITCH[switch.lower()] and folders:
        raise ValueError(
            f"LLAVA_CODEC_USE_OFFLINE = {switch}, but assets are named "
            f"({':'.join(folders)}): remove one of the two"
        )
    return folders


def _debug(given: str | int | None, variable: str | None) -> str:
    if given is not None and variable is not None and str(given) != variable:
        raise ValueError(f"debug = {given}, but LLAVA_CODEC_DEBUG = {variable}: give one")
    value = str(given) if given is not None else variable or "0"
    if value not in DEBUG:
        raise ValueError(f"debug (LLAVA_CODEC_DEBUG) = {value!r} must be 0, 1 or all")
    return value


def _folders(text: str | None) -> tuple[str, ...]:
    """Folders of a list with colons; those of URLs don't part."""
    parts = (text or "").replace("://", "\0").split(":")
    return tuple(part.strip().replace("\0", "://") for part in parts if part.strip())


def _number(name: str, value: str | int) -> int:
    try:
        number = int(value)
    except ValueError as error:
        raise ValueError(f"{name} = {value!r} must be a number") from error
    if number < 1:
        raise ValueError(f"{name} = {value!r} must be at least 1")
    return number


def _agree(earlier: tuple[Any, str] | None, value: Any, source: str) -> None:
    if earlier is not None and earlier[0] != value:
        raise ValueError(f"{earlier[1]} says {earlier[0]}, but {source} = {value}: give one")


def _told(told: Mapping[str, Any], name: str) -> Any:
    if "selection" in told:
        return told["selection"].get("policy") if name == "policy" else told.get(name)
    published = {
        "num_frames": told.get("seq_len_frames"),
        "num_images": told.get("num_images"),
        "size": told.get("square_size"),
        "patch": told.get("patch_size"),
        "policy": {"global": "top_k", "time_bucket": "time_bucket"}.get(told.get("topk_mode", "")),
        "geometry": "square",
    }
    return published[name]
