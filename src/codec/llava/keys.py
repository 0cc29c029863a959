"""Names of packs and assets, and the hash of what they were made with.

Ids, keys and file names come from data sets: they may hold separators, `..`, nothing at all, or any
script of the world.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from ...files import is_url, join
from .span import Span

_LONGEST = 64  # characters of a cleaned name: several of them make up one file name
PACK_FOLDERS = 100
"""Folders shard00 to shard99 that packs are spread over, by their hash."""


def sanitise(name: str) -> str:
    """A name that is safe as a file or folder name, different for different names.

    Args:
      name: anything.

    Returns:
      `name` itself if it is made of 1 to 64 letters, digits, `.`, `_`, `-` (ASCII) and does not
      begin with a dot; else what is left of it, with 8 hex digits of its hash.
    """
    cleaned = _clean(name)
    return name if name and cleaned == name else f"{cleaned}-{short_hash(name)}"


def short_hash(text: str, digits: int = 8) -> str:
    """The first hex digits of the sha256 of a text."""
    return _sha256(text)[:digits]


def stem_of(path: str) -> str:
    """The name of a file, or of a folder of images, without its ending."""
    return posixpath.splitext(posixpath.basename(path.rstrip("/")))[0]


def relative_path(path: str, root: str) -> str:
    """One name for a file, however it is written: its path below `root`, with `/`.

    Args:
      path: path or URL; a relative one is meant from `root`.
      root: folder or URL, the same for all files of a data set.

    Returns:
      The path; with leading `..` where the file lies beside `root`, a URL where it lies elsewhere.
    """
    whole = join(root, path)
    if is_url(whole):
        scheme, _, place = whole.partition("://")
        whole = f"{scheme}://{posixpath.normpath(place)}"
        return whole.removeprefix(root.rstrip("/") + "/")
    return os.path.relpath(os.path.abspath(whole), os.path.abspath(root))  # noqa: PTH100, PTH109


def asset_key(path: str, root: str) -> str:
    """The key of a video's evaluation assets.

    Args:
      path: the video; a relative path is meant from `root`.
      root: folder or URL that the videos of the benchmark lie in, wherever that is mounted.

    Returns:
      Its sanitised stem, `-`, and 8 hex digits of the sha256 of its path relative to `root`.
    """
    return f"{_clean(stem_of(path))}-{short_hash(relative_path(path, root))}"


def key_of(row: Mapping[str, Any], root: str) -> str:
    """The key of the assets that a row of a benchmark needs.

    Args:
      row: has `video`, and perhaps a `key` of its own, which then counts (sanitised). `start`,
        `end` (seconds) and `end_frame` (the last one shown) bound what is shown of the video; each
        part of a video has a key of its own.
      root: as for `asset_key`.

    Returns:
      The key, a safe name of a folder.

    Raises:
      ValueError: neither a key nor a video, or impossible bounds.
    """
    key = row.get("key")
    if key is not None and str(key):
        return sanitise(str(key))
    video = row.get("video")
    if not (isinstance(video, str) and video):
        raise ValueError(f"video = {video!r} must be the path of a file")
    return asset_key(video, root) + Span.of(row).suffix


def pack_folder(sample_id: str, name: str) -> str:
    """Where the pack of a training video lies, below the folder of all packs.

    It depends on nothing but the arguments, so that data can grow. A hundred folders hold up to
    10,000 packs each, a million in all.

    Args:
      sample_id: id of a row that uses it.
      name: `relative_path` of the video.

    Returns:
      `shardNN/sample_<id>__<stem>__<hash>`; the hash, 16 digits, alone tells the video.
    """
    shard = int(short_hash(name), 16) % PACK_FOLDERS
    return f"shard{shard:02d}/sample_{sanitise(sample_id)}__{pack_suffix(name)}"


def pack_suffix(name: str) -> str:
    """What the folder name of a video's pack ends in, whichever row gave the rest."""
    return f"{sanitise(stem_of(name))}__{short_hash(name, 16)}"


def published_suffix(path: str) -> str:
    """The same in packs of the published tool, which hashes the path as a row has it."""
    return f"{stem_of(path)}__{sha1(path)}"


def sha1(text: str) -> str:
    """8 hex digits of the sha1 of a text, as in published file names."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:8]


def config_hash(description: Mapping[str, Any]) -> str:
    """16 hex digits that change with any option; the order of the options does not count."""
    return _sha256(json.dumps(description, sort_keys=True))[:16]


def _clean(name: str) -> str:
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:_LONGEST]
    return re.sub(r"^\.+", "_", cleaned) or "_"


def _sha256(text: str) -> str:
    # Names of files that are not UTF-8 come as lone surrogates.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
