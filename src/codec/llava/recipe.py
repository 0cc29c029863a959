"""Recipes of training data: a YAML list of JSON files, and which of their rows count how often.

    datasets:
      - json_path: codec/train.jsonl        # relative to the data root
        sampling_strategy: all              # all | first:N | end:N | random:N, N rows or a share
      - json_path: llava_558k.json
        image_folder: images/558k           # of its rows; default: the folder of the JSON file
        sampling_strategy: random:10%
        repeat: 2                           # every row twice in an epoch

`json_path` and `sampling_strategy` are those of LLaVA-NeXT's recipes, which are read as they are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from ...files import is_url, join, read_text
from .rows import folder_of

_STRATEGIES = ("all", "first", "end", "random")
_KEYS = ("json_path", "sampling_strategy", "repeat", "image_folder", "video_folder")


@dataclasses.dataclass(frozen=True)
class Strategy:
    """Which rows of a file count.

    Attributes:
      kind: "all", "first", "end" or "random".
      number: rows, or None.
      percent: share of the rows, 0 < percent <= 100, or None.
    """

    kind: str = "all"
    number: int | None = None
    percent: float | None = None

    @classmethod
    def parse(cls, text: str) -> Strategy:
        """Reads `all`, `first:1000`, `end:5%`, `random:0.5%`; raises ValueError for others."""
        kind, _, amount = text.partition(":")
        form = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", amount)
        if text == "all":
            return cls()
        if kind in _STRATEGIES[1:] and form:
            number, percent = form[1] and int(form[1]), form[2] and float(form[2])
            if number or (percent and percent <= 100):
                return cls(kind, number, percent)
        raise ValueError(
            f"sampling_strategy = {text!r} must be all, first:N, end:N or random:N, with N a "
            "number of rows or a share such as 10%"
        )

    def take(self, rows: int, seed: int, name: str) -> np.ndarray:
        """The rows that count.

        Args:
          rows: how many there are.
          seed: of the draw "random".
          name: of the file; the draw depends on it, not on the file's place in the recipe.

        Returns:
          int64, increasing, without repetition.

        Raises:
          ValueError: more rows are asked for than there are.
        """
        if self.kind == "all":
            return np.arange(rows)
        if self.percent is None:
            count = self.number
        else:
            count = math.ceil(round(rows * self.percent / 100, 6))  # 7 % of 100 is 7.000...01
        if count > rows:
            raise ValueError(f"sampling_strategy asks for {count} rows of {rows}")
        if self.kind == "first":
            return np.arange(count)
        if self.kind == "end":
            return np.arange(rows - count, rows)
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        draw = np.random.default_rng([seed, int.from_bytes(digest[:8])])
        return np.sort(draw.choice(rows, count, replace=False))


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file of a recipe.

    Attributes:
      json_path: JSON or JSONL; relative to the data root, like the folders.
      strategy: which rows count.
      repeat: how often they do.
      image_folder: what images of rows without mosaics are relative to; None: the folder of the
        file. Mosaics are always relative to the folder of the file.
      video_folder: the same for videos.
    """

    json_path: str
    strategy: Strategy = Strategy()
    repeat: int = 1
    image_folder: str | None = None
    video_folder: str | None = None

    def file(self, root: str) -> str:
        """Path of the file."""
        return join(root, self.json_path)

    def folders(self, root: str) -> Folders:
        """What the paths in its rows are relative to."""
        base = folder_of(self.file(root))
        below = [
            base if f is None else join(root, f) for f in (self.image_folder, self.video_folder)
        ]
        return Folders(base, *below)


@dataclasses.dataclass(frozen=True)
class Folders:
    """What paths in rows are relative to.

    Attributes:
      mosaics: of rows with `positions_thw`.
      images: of the others' images.
      videos: of videos.
    """

    mosaics: str
    images: str
    videos: str


def data_root(recipe: str, root: str | None) -> str:
    """The folder of all data, absolute, or its URL: `root`, or by default that of the recipe."""
    if root is None:
        return folder_of(recipe)
    return root if is_url(root) else str(Path(root).absolute())


def read_recipe(path: str) -> list[Entry]:
    """Reads a recipe.

    Args:
      path: YAML file or URL: a list of entries, or a mapping whose only key `datasets` holds it.

    Returns:
      Its entries.

    Raises:
      ValueError: it is no such YAML; the message names the file, the entry and the key.
      OSError: the file cannot be read.
    """
    try:
        import yaml
    except ImportError as error:
        raise ValueError(f"{path}: recipes need PyYAML: pip install pyyaml") from error
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no YAML ({error})") from error
    if isinstance(content, dict) and content.keys() == {"datasets"}:
        content = content["datasets"]
    if not (isinstance(content, list) and content):
        raise ValueError(f"{path}: must hold a list of entries, alone or as `datasets`")
    entries = []
    for number, entry in enumerate(content):
        try:
            entries.append(_entry(entry))
        except ValueError as error:
            name = (
                f" ({entry['json_path']})"
                if isinstance(entry, dict) and "json_path" in entry
                else ""
            )
            raise ValueError(f"{path}: entry {number}{name}: {error}") from error
    return entries


def _entry(entry: Any) -> Entry:
    if not isinstance(entry, dict):
        raise ValueError(f"{entry!r} must be a mapping with json_path")
    for key in entry:
        if key not in _KEYS:
            raise ValueError(f"unknown key {key!r}: must be one of {', '.join(_KEYS)}")
    for key in ("json_path", "sampling_strategy", "image_folder", "video_folder"):
        if key in entry and not (isinstance(entry[key], str) and entry[key]):
            raise ValueError(f"{key} = {entry[key]!r} must be a text")
    if "json_path" not in entry:
        raise ValueError("has no json_path")
    repeat = entry.get("repeat", 1)
    if not isinstance(repeat, int) or isinstance(repeat, bool) or repeat < 1:
        raise ValueError(f"repeat = {repeat!r} must be an integer of at least 1")
    return Entry(
        entry["json_path"],
        Strategy.parse(entry.get("sampling_strategy", "all")),
        repeat,
        entry.get("image_folder"),
        entry.get("video_folder"),
    )
