"""The packs that lie below a folder, found by video."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from ...files import is_url, join, list_files

_PACK = re.compile(r"(?:sample_|video__).*__[0-9a-f]{8,16}")


class PackIndex:
    """The packs below a folder, by the ends of their names: stem and hash of the path.

    The id in front of them may be that of any row.
    """

    def __init__(self, root: str) -> None:
        self._by_hash: dict[str, list[str]] = {}
        for folder in sorted(_pack_folders(root)):
            self._by_hash.setdefault(folder.rpartition("__")[2], []).append(folder)

    def find(self, suffix: str) -> str | None:
        """The folder whose name ends in `__<suffix>`."""
        for folder in self._by_hash.get(suffix.rpartition("__")[2], ()):
            if folder.endswith(f"__{suffix}"):
                return folder
        return None


def _pack_folders(root: str) -> Iterator[str]:
    if is_url(root):
        parents = {name.rpartition("/")[0] for name in list_files(root)}
        yield from (join(root, p) for p in parents if _PACK.fullmatch(p.rpartition("/")[2]))
        return
    for folder, below, _ in os.walk(root):
        yield from (os.path.join(folder, name) for name in below if _PACK.fullmatch(name))  # noqa: PTH118
        below[:] = [name for name in below if not _PACK.fullmatch(name)]
