"""A folder to write into bit by bit, wherever it lies: object stores cannot append."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from pathlib import Path

from .files import PathOrUrl, download, exists, is_url, join, list_files, write_atomic

EVERY_SECONDS = 30.0
_LOG = logging.getLogger(__name__)


class Mirror:
    """A local folder; that of a URL is a temporary one whose files a thread copies there.

    A local place is the folder itself, and nothing is copied. Files of a URL that this process has
    not written stay as they are. A copy that fails is a warning and is tried again, so a killed
    process loses what it wrote within the last `every` seconds.

    Args:
      place: folder or URL; a folder is made.
      every: seconds between two copies.

    Attributes:
      folder: where to write.
    """

    def __init__(self, place: PathOrUrl, every: float = EVERY_SECONDS) -> None:
        self._url = os.fspath(place) if is_url(place) else None
        if self._url is None:
            self.folder = Path(place)
            self.folder.mkdir(parents=True, exist_ok=True)
            return
        self._temporary = tempfile.TemporaryDirectory(prefix="codecvit-")
        self.folder = Path(self._temporary.name)
        self._every, self._failed = every, False
        self._copied: dict[str, tuple[int, int]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def fetch(self, name: str) -> None:
        """Gets a file that is there already, to go on with it; does nothing if there is none."""
        if self._url is not None and exists(join(self._url, name)):
            download(join(self._url, name), self.folder / name)

    def close(self) -> None:
        """Copies what is new and removes a temporary folder."""
        if self._url is not None and not self._end.is_set():
            self._end.set()
            self._thread.join()
            self._copy()
            self._temporary.cleanup()

    def _run(self) -> None:
        while not self._end.wait(self._every):
            self._copy()

    def _copy(self) -> None:
        assert self._url is not None
        failures = []
        for name in list_files(self.folder):
            path = self.folder / name
            about = path.stat()
            state = (about.st_mtime_ns, about.st_size)
            if self._copied.get(name) == state:
                continue
            try:
                write_atomic(join(self._url, name), path.read_bytes())
                self._copied[name] = state
            except (OSError, ValueError) as error:
                failures.append(f"{name}: {error}")
        if failures and not self._failed:  # once, not every half minute
            _LOG.warning("cannot be copied to %s: %s", self._url, "; ".join(failures))
        self._failed = bool(failures)
