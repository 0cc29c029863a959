"""Fetches a benchmark from the hub, when it was asked for, to where lmms-eval looks for it.

The hub's own client does the work: it resumes, and reads HF_HOME, HF_ENDPOINT, HF_TOKEN. No token
is ever printed.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .tasks import Benchmark, video_folder

HUB = "https://huggingface.co"
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


def fetch(
    benchmark: Benchmark,
    home: Path,
    environ: Mapping[str, str] = os.environ,
    say: Callable[[str], None] = print,
) -> Path:
    """Downloads a benchmark and unpacks it.

    Args:
      benchmark: one with videos.
      home: HF_HOME.
      environ: HF_ENDPOINT and HF_HUB_CACHE are read from it.
      say: is told the size before anything is downloaded.

    Returns:
      The folder of its videos, `home/<cache>`.

    Raises:
      ValueError: gated, not there, not reachable, or larger than the disk's free space; run again,
        it goes on where it stopped.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    endpoint = (environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    page = f"{endpoint}/datasets/{benchmark.hub}"
    cache = hub_cache(home, environ)
    try:
        info = HfApi(endpoint=endpoint).dataset_info(
            benchmark.hub, revision=benchmark.revision, files_metadata=True
        )
        files = info.siblings or []
        total = sum(file.size or 0 for file in files)
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
        say(
            f"{benchmark.hub} ({benchmark.revision}): {len(files)} files, {_size(total)}; unpacked "
            f"about as much again; {_size(free)} are free at {cache}"
        )
        if total > free:
            raise ValueError(
                f"{benchmark.hub} needs {_size(total)}, but {_size(free)} are free at {cache}: "
                "set HF_HOME to a larger disk"
            )
        snapshot = snapshot_download(
            benchmark.hub,
            repo_type="dataset",
            revision=benchmark.revision,
            cache_dir=cache,
            endpoint=endpoint,
        )
    except GatedRepoError as error:
        raise ValueError(
            f"{benchmark.hub} is gated: accept its terms at {page}, then log in with `hf auth "
            "login` (or set HF_TOKEN) and run again"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{page} does not exist, or is private: `hf auth login` (or HF_TOKEN) opens what you "
            "have access to"
        ) from error
    # The client's HTTP library is one or another by its version; its errors are this one's bases.
    except (*HfHubHTTPError.__bases__, OSError) as error:
        raise ValueError(
            f"{benchmark.hub} could not be fetched from {endpoint} ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}): run again, it goes on where it stopped"
        ) from error
    return unpack(Path(snapshot), video_folder(benchmark, home))


def downloaded(benchmark: Benchmark, home: Path, environ: Mapping[str, str]) -> Path | None:
    """The snapshot of an earlier download; None if there is no whole one. No network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                benchmark.hub,
                repo_type="dataset",
                revision=benchmark.revision,
                cache_dir=hub_cache(home, environ),
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError:
        return None


def hub_cache(home: Path, environ: Mapping[str, str]) -> Path:
    """Where the hub's client keeps downloads."""
    return Path(environ.get("HF_HUB_CACHE") or home / "hub").expanduser().absolute()


def unpack(snapshot: Path, folder: Path) -> Path:
    """Brings a download to the folder of its videos, as lmms-eval itself does.

    Args:
      snapshot: its ZIP and TAR files are unpacked, also TAR files in several pieces; without any,
        `folder` becomes a link to it.
      folder: must not exist yet; it appears when all is there.

    Returns:
      `folder`.

    Raises:
      ValueError: an archive is damaged, or `folder` exists.
    """
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"{folder} exists already: remove it to unpack {snapshot} again")
    folder.parent.mkdir(parents=True, exist_ok=True)
    groups = _archives(snapshot)
    if not groups:
        folder.symlink_to(snapshot, target_is_directory=True)
        return folder
    part = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for files in groups:
        try:
            if files[0].suffix == ".zip":
                with zipfile.ZipFile(files[0]) as archive:
                    archive.extractall(part)
            else:
                with (
                    io.BufferedReader(_Chain(files), 1 << 20) as stream,
                    tarfile.open(fileobj=stream, mode="r|*") as archive,
                ):
                    archive.extractall(part, filter="data")
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            names = ", ".join(file.name for file in files)
            raise ValueError(f"{snapshot}: {names} cannot be unpacked ({error})") from error
    part.rename(folder)
    return folder


def _archives(snapshot: Path) -> list[list[Path]]:
    """Archives, the pieces of one together: x.tar.part.aa, x.tar.part.ab, ..."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(snapshot.rglob("*")):
        name = path.relative_to(snapshot).as_posix()
        if path.name.lower().endswith(_ARCHIVES):
            groups[name] = [path]
        elif ".tar." in path.name.lower() and not path.name.endswith((".json", ".txt", ".md")):
            groups.setdefault(name[: name.lower().rindex(".tar.") + 4], []).append(path)
    return list(groups.values())


class _Chain(io.RawIOBase):
    """Files one after the other, as if they were one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._rest = list(paths)
        self._file: io.FileIO | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            if self._file is None:
                if not self._rest:
                    return 0
                self._file = io.FileIO(self._rest.pop(0))
            count = self._file.readinto(buffer)
            if count:
                return count
            self._file.close()
            self._file = None


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
