"""Files here or behind a URL (`gs://bucket/a.mp4`): the one place that knows the difference.

URLs go through fsspec, whose package for a scheme (gcsfs, s3fs, ...) users install themselves.
Every write is whole or absent: a temporary file that is renamed, or one object of an object store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PathOrUrl = str | os.PathLike[str]

# An object appears when its upload is complete; renaming one would copy it.
_OBJECT_STORES = frozenset({"abfs", "az", "gcs", "gs", "oci", "oss", "s3", "s3a"})


def is_url(path: PathOrUrl) -> bool:
    """Whether a path has a scheme, such as `gs://bucket/name`."""
    return _scheme(path) is not None


def join(folder: PathOrUrl, *names: str) -> str:
    """A name below a folder or URL; names that are absolute or URLs replace what stands before."""
    for name in names:
        if is_url(name) or name.startswith("/"):
            folder = name
        else:
            folder = posixpath.join(os.fspath(folder), name)
    return os.fspath(folder)


def last_name(path: PathOrUrl) -> str:
    """The last part of a path or URL; of "." the folder's own name."""
    if not is_url(path):
        return Path(path).resolve().name
    return posixpath.basename(os.fspath(path).rstrip("/"))


def exists(path: PathOrUrl) -> bool:
    """Whether there is such a file or folder."""
    if not is_url(path):
        return Path(path).exists()
    with _remote(path) as (filesystem, place):
        return filesystem.exists(place)


def make_folder(path: PathOrUrl) -> None:
    """Makes a local folder; below a URL folders come with their files."""
    if not is_url(path):
        Path(path).mkdir(parents=True, exist_ok=True)


def is_folder(path: PathOrUrl) -> bool:
    """Whether there is a folder, or objects below a URL."""
    if not is_url(path):
        return Path(path).is_dir()
    with _remote(path) as (filesystem, place):
        return filesystem.isdir(place)


@contextlib.contextmanager
def open_read(path: PathOrUrl) -> Iterator[IO[bytes]]:
    """Opens a file for reading bytes; of a remote one only what is read is fetched.

    Raises:
      OSError: there is no such file, or it cannot be reached.
      ValueError: nothing installed reads the URL's scheme.
    """
    if not is_url(path):
        with Path(path).open("rb") as file:
            yield file
        return
    with _remote(path) as (filesystem, place), filesystem.open(place, "rb") as file:
        yield file


def read_bytes(path: PathOrUrl) -> bytes:
    """The content of a file.

    Raises:
      OSError: there is no such file, or it cannot be reached.
      ValueError: nothing installed reads the URL's scheme.
    """
    with open_read(path) as file:
        return file.read()


def read_text(path: PathOrUrl) -> str:
    """The content of a UTF-8 file, a byte order mark removed; errors as `read_bytes`."""
    return read_bytes(path).decode("utf-8-sig")


def write_atomic(path: PathOrUrl, data: bytes) -> None:
    """Writes a file so that a reader sees the old content or the new one, never a part.

    Args:
      path: the file; a local folder must exist.
      data: its content.
    """
    if not is_url(path):
        with _renamed(Path(path)) as temporary:
            temporary.write_bytes(data)
        return
    with _remote(path) as (filesystem, place), _put(filesystem, path, place) as target:
        filesystem.pipe_file(target, data)


def write_json(path: PathOrUrl, value: Any, *, sort_keys: bool = False) -> None:
    """Writes JSON, indented, whole or not at all.

    Args:
      path: the file; a local folder must exist.
      value: of JSON types.
      sort_keys: objects by their keys, as transformers writes them.
    """
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=sort_keys) + "\n").encode())


def list_files(folder: PathOrUrl) -> dict[str, int]:
    """All files below a folder, at any depth.

    Args:
      folder: folder or URL; one that does not exist has no files.

    Returns:
      Bytes of each file by its path below the folder (with `/`), sorted by that path.
    """
    if not is_url(folder):
        paths = [path for path in Path(folder).rglob("*") if path.is_file()]
        found = {p.relative_to(folder).as_posix(): p.stat().st_size for p in paths}
    else:
        with _remote(folder) as (filesystem, place):
            root = place.rstrip("/") + "/"
            details = filesystem.find(place, detail=True)
            found = {
                name.removeprefix(root): int(detail["size"] or 0)
                for name, detail in details.items()
                if name.startswith(root)
            }
    return dict(sorted(found.items()))


def remove(path: PathOrUrl) -> None:
    """Removes a file; one that is not there is no error."""
    with contextlib.suppress(FileNotFoundError):
        if not is_url(path):
            Path(path).unlink()
        else:
            with _remote(path) as (filesystem, place):
                filesystem.rm_file(place)


def move_folder(old: PathOrUrl, new: PathOrUrl) -> None:
    """Renames a folder; both lie here, or both behind one kind of URL (object by object)."""
    if not is_url(old):
        Path(old).rename(new)
        return
    with _remote(old) as (filesystem, place), _remote(new) as (_, target):
        filesystem.mv(place, target, recursive=True)


@contextlib.contextmanager
def local_copy(path: PathOrUrl) -> Iterator[Path]:
    """A file as one of this machine: itself, or a temporary copy of a remote one.

    Yields:
      The path of a local file; a copy keeps its name and is removed in the end.

    Raises:
      OSError: a URL cannot be fetched. (A missing local file is left to who opens it.)
    """
    if not is_url(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="codecvit-") as folder:
        copy = Path(folder) / (posixpath.basename(os.fspath(path)) or "file")
        download(path, copy)
        yield copy


def download(url: PathOrUrl, path: Path) -> None:
    """Fetches a remote file to a local path, whole or not at all."""
    with _remote(url) as (filesystem, place), _renamed(path) as temporary:
        filesystem.get_file(place, str(temporary))


def upload(local: Path, url: PathOrUrl) -> None:
    """Copies a local file, or a folder with all that is in it, to a URL.

    Args:
      local: file or folder. Files go in sorted order, one named manifest.json last: who finds it
        there finds all.
      url: the name that the file or folder gets.
    """
    files = list_files(local) if local.is_dir() else {"": 0}
    for name in sorted(files, key=lambda name: (name == "manifest.json", name)):
        target_url = join(url, name) if name else os.fspath(url)
        with (
            _remote(target_url) as (filesystem, place),
            _put(filesystem, target_url, place) as target,
        ):
            filesystem.put_file(str(local / name), target)


def fresh_listings() -> None:
    """Has fsspec ask object stores anew each time; call it before others open them.

    The other processes of a run write there too, so a listing that is remembered is soon wrong.
    """
    import fsspec

    for scheme in _OBJECT_STORES:
        fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _scheme(path: PathOrUrl) -> str | None:
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", os.fspath(path))
    return found and found[1].lower()


@contextlib.contextmanager
def _remote(url: PathOrUrl) -> Iterator[tuple[AbstractFileSystem, str]]:
    """The file system of a URL and the path in it; what goes wrong inside is an OSError."""
    import fsspec

    fresh_listings()
    url = os.fspath(url)
    try:
        filesystem, place = fsspec.core.url_to_fs(url)
    except ImportError as error:  # its message names the package
        raise ValueError(f"{url} cannot be used here: {error}") from error
    except ValueError as error:
        raise ValueError(
            f"{url}: {error}; known are for example gs:// (pip install gcsfs) and s3:// (pip "
            "install s3fs)"
        ) from error
    try:
        yield filesystem, place
    except (OSError, ValueError):
        raise
    except Exception as error:
        # The packages behind fsspec have error classes of their own, without a common base.
        raise OSError(f"{url}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """A temporary name beside a local file, which takes its place at the end."""
    temporary = path.with_name(_temporary_name(path.name))
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _put(filesystem: AbstractFileSystem, url: PathOrUrl, place: str) -> Iterator[str]:
    """The name to write a remote file under, so that it appears whole."""
    if _scheme(url) in _OBJECT_STORES:
        yield place
        return
    folder, name = posixpath.split(place)
    filesystem.makedirs(folder, exist_ok=True)
    temporary = posixpath.join(folder, _temporary_name(name))
    yield temporary
    filesystem.mv(temporary, place)


def _temporary_name(name: str) -> str:
    # Unique, because two jobs may write the same file at once.
    return f".{name}.{uuid.uuid4().hex[:12]}.tmp"
