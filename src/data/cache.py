"""Remote record sets: the small files come when a set is opened, shards when they are first read.

The shards of all remote sets together take at most CODECVIT_CACHE_GB; those that were not read for
longest go first. Every shard has a lock file, and only its holder fetches, opens or drops the
shard, so that any number of processes can share the cache. While a shard is being fetched, its lock
file is as long as the shard will be (a hole, which takes no disk): that room is spoken for.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from array_record.python.array_record_module import ArrayRecordReader

from ..files import download, join, list_files, read_bytes, write_atomic
from .record import RecordError
from .shards import check_shard, open_shard

if TYPE_CHECKING:
    from .records import RecordSet

_DEFAULT_GB = 100.0
_POLL = 0.05  # seconds between looks for room


def cache_folder() -> Path:
    """Where copies of remote sets lie: CODECVIT_CACHE, by default ~/.cache/codecvit."""
    return Path(os.environ.get("CODECVIT_CACHE") or Path.home() / ".cache" / "codecvit")


def cache_limit() -> int:
    """Most bytes of cached shards: CODECVIT_CACHE_GB, by default 100 GB.

    Raises:
      ValueError: it is no positive number.
    """
    text = os.environ.get("CODECVIT_CACHE_GB") or str(_DEFAULT_GB)
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise ValueError(f"CODECVIT_CACHE_GB = {text!r} must be a positive number of gigabytes")
    return int(limit * 1e9)


def cache_need(shards: Sequence[Mapping[str, Any]], window: int) -> int:
    """Bytes of shards between which a loader goes back and forth.

    Args:
      shards: the shard list of a manifest.
      window: the order of so many records in a row is drawn at once.

    Returns:
      Those of two windows, as the next one is begun before the last one is done, with the two
      shards at their edges; at most those of the whole set.
    """
    total = sum(shard["bytes"] for shard in shards)
    records = max(sum(shard["records"] for shard in shards), 1)
    edges = 2 * max((shard["bytes"] for shard in shards), default=0)
    return min(total, 2 * window * total // records + edges)


def orders_of(
    record_sets: Iterable[RecordSet], window: int, shuffle: bool
) -> list[tuple[RecordSet, int]]:
    """The record sets of a loader, each with the records in a row among which its order is drawn.

    Raises:
      ValueError: the window is negative.
    """
    if window < 0:
        raise ValueError(f"shuffle_window = {window} must be at least 0")
    return [(found, (window or len(found)) if shuffle else 1) for found in record_sets]


def check_orders(orders: Iterable[tuple[RecordSet, int]]) -> None:
    """Refuses orders, all read at once, that would fetch a shard for nearly every record.

    Raises:
      ValueError: the cache cannot hold the remote shards between which they go back and forth.
    """
    needs: dict[Path, int] = {}
    for found, window in orders:
        if own := found.cache_need(window):
            # Who reads a set a second time finds its shards there.
            together = needs.get(found.path, 0) + own
            needs[found.path] = min(together, found.cache_need(len(found)))
    need = sum(needs.values())
    limit = cache_limit() if need else 0
    if need > limit:
        raise ValueError(
            f"the order of the records goes back and forth in {need / 1e9:.3g} GB of remote "
            f"shards, the cache holds CODECVIT_CACHE_GB = {limit / 1e9:.3g}: raise it, or give a "
            "smaller shuffle_window"
        )


def copy_small_files(url: str) -> tuple[Path, dict[str, int]]:
    """Copies what a remote set holds besides its shards; what is there is not fetched again.

    The copy belongs to the manifest's content, so that a set that is packed anew gets a new one.
    Label files are fetched each time, since `codecvit cluster` may have added to them.

    Returns:
      The local folder, and the bytes of every remote file by its name.

    Raises:
      RecordError: the set is not finished.
    """
    try:
        manifest = read_bytes(join(url, "manifest.json"))
    except FileNotFoundError:
        raise RecordError(
            f"{url} is no finished record set (no manifest.json): pack it first, or finish packing"
        ) from None
    name = hashlib.sha256(url.rstrip("/").encode() + b"\n" + manifest).hexdigest()[:32]
    folder = cache_folder() / "sets" / name
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    remote = list_files(url)
    for file, size in remote.items():
        missing = file in ("index.jsonl", "failures.jsonl") and not _is_whole(folder / file, size)
        if missing or file.startswith("labels/"):
            download(join(url, file), folder / file)
    write_atomic(folder / "manifest.json", manifest)
    return folder, remote


class CachedShard(NamedTuple):
    """An open shard of the cache.

    Attributes:
      reader: reads on even where the file is dropped, but keeps its room on the disk till then.
      path: the file...
      inode: ...and which one, since a shard that was dropped may have been fetched again.
    """

    reader: ArrayRecordReader
    path: Path
    inode: int

    def in_use(self) -> bool:
        """Notes that the shard is being read; False if it was dropped."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.path)
        return self.is_there()

    def is_there(self) -> bool:
        """Whether the file is still the one that is open."""
        try:
            return self.path.stat().st_ino == self.inode
        except FileNotFoundError:
            return False


def open_cached(url: str, folder: Path, shard: Mapping[str, Any]) -> CachedShard:
    """Opens a shard of a remote set, fetched first if it is not in the cache.

    Args:
      url: the set.
      folder: its folder in the cache.
      shard: its entry of the manifest.

    Raises:
      OSError: it could not be fetched, or what came is not the shard.
      ValueError: it is larger than the cache may be.
    """
    path = folder / shard["name"]
    with _locked(path) as lock:
        if not _is_whole(path, shard["bytes"]):
            _make_room(lock, path, shard["bytes"])
            try:
                download(join(url, shard["name"]), path)
                check_shard(path, shard)
            except (RecordError, OSError) as error:
                path.unlink(missing_ok=True)
                # An error that ends the run: as unreadable records all of them would be fetched
                # again and again.
                raise OSError(
                    f"shard {join(url, shard['name'])} could not be fetched to {path}: {error}"
                ) from error
            finally:
                os.ftruncate(lock, 0)
        os.utime(path)
        return CachedShard(open_shard(path), path, path.stat().st_ino)


def _is_whole(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _make_room(lock: int, path: Path, size: int) -> None:
    """Drops shards until `size` bytes fit, and speaks for them; waits where others are at work."""
    limit = cache_limit()
    if size > limit:
        raise ValueError(
            f"CODECVIT_CACHE_GB = {limit / 1e9:g} is less than the shard {path.name} of "
            f"{size / 1e9:g} GB: raise it, or pack with fewer --files-per-shard"
        )
    _remove_torn(path)
    while True:
        with _locked(cache_folder() / "sets" / "all"):
            if _drop_until(limit - size):
                os.ftruncate(lock, size)
                return
        time.sleep(_POLL)


def _drop_until(allowed: int) -> bool:
    """Drops the shards that were not read for longest, until the others take `allowed` bytes."""
    shards = []
    for lock in (cache_folder() / "sets").glob("*/.*.array_record.lock"):
        path = lock.with_name(lock.name[1 : -len(".lock")])
        size = lock.stat().st_size
        try:
            found = path.stat()
        except FileNotFoundError:  # being fetched, or its process was killed while it did
            shards.append((0, size, path))
        else:
            shards.append((found.st_mtime_ns, size + found.st_size, path))
    used = sum(size for _, size, _ in shards)
    for _, size, path in sorted(shards):
        if used <= allowed:
            break
        if size and _drop(path):
            used -= size
    return used <= allowed


def _drop(path: Path) -> bool:
    """Removes a shard, unless somebody is fetching or opening it."""
    with _locked(path, wait=False) as lock:
        if lock is None:
            return False
        path.unlink(missing_ok=True)
        _remove_torn(path)
        os.ftruncate(lock, 0)
        return True


def _remove_torn(path: Path) -> None:
    """Removes what a killed process left of a shard; the caller holds its lock."""
    for torn in path.parent.glob(f".{path.name}.*.tmp"):
        torn.unlink()


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[int | None]:
    """Holds the lock of a path, against threads and processes; None if it is held and `wait` not.

    The system takes it back from a process that dies.
    """
    name = path.with_name(f".{path.name}.lock")
    lock = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield lock
    finally:
        os.close(lock)
