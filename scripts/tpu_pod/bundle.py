"""The files of a working tree that workers need, in one archive."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

WORKER_SCRIPT = Path(__file__).resolve().parent.parent / "worker.sh"
# Outside a git tree, which says itself what is not part of it.
SKIPPED = {"__pycache__", "node_modules", "checkpoints", "wandb", "build", "dist"}
SKIPPED_ENDINGS = (".egg-info", "_cache", ".pyc", ".array_record")


@dataclass(frozen=True)
class Bundle:
    """An archive in a folder of its own.

    Args:
      path: the file; its name tells its content.
      sha256: of the file.
      files: how many files of the tree it holds.
      size: bytes of these.
    """

    path: Path
    sha256: str
    files: int
    size: int


def tree_files(root: Path) -> list[str]:
    """The files and symbolic links of a tree that belong on a worker, as paths below it.

    In a git tree: what git tracks, and what is new and not ignored. Elsewhere: all but hidden
    entries, caches, virtual environments and checkpoints.

    Raises:
      ValueError: no such folder, nothing in it, or a submodule.
    """
    if not root.is_dir():
        raise ValueError(f"--dir = {os.fspath(root)!r} is not a folder")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
    )
    if listed.returncode == 0:
        found = sorted({os.fsdecode(name) for name in listed.stdout.split(b"\0") if name})
        found = [name for name in found if os.path.lexists(root / name)]
    else:
        found = sorted(_walk(root))
    for name in found:
        if (root / name).is_dir() and not (root / name).is_symlink():
            raise ValueError(
                f"{os.fspath(root / name)!r} is another repository: sync it by itself, or list it "
                "in .gitignore"
            )
    if not found:
        raise ValueError(f"--dir = {os.fspath(root)!r} holds no files to sync")
    return found


def make_bundle(root: Path, out: Path, max_mb: float) -> Bundle:
    """Packs a tree, the list of its files, and worker.sh.

    Args:
      root: the tree.
      out: an empty folder for the archive.
      max_mb: more than so many MB (10^6 bytes) of files are refused.

    Returns:
      The archive.

    Raises:
      ValueError: no folder, no files, or too many bytes; the largest files are named.
    """
    names = tree_files(root)
    sizes = {name: (root / name).lstat().st_size for name in names}
    total = sum(sizes.values())
    if total > max_mb * 1e6:
        largest = sorted(names, key=lambda name: -sizes[name])[:3]
        told = ", ".join(f"{name!r} ({sizes[name] / 1e6:.0f} MB)" for name in largest)
        raise ValueError(
            f"{total / 1e6:.0f} MB to sync, more than --max-mb {max_mb:g}; the largest: {told}. "
            "List data and outputs in .gitignore, or raise --max-mb"
        )
    tree = io.BytesIO()
    with tarfile.open(fileobj=tree, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            archive.add(root / name, arcname=name, recursive=False, filter=_nobodys)
    manifest = b"".join(os.fsencode(name) + b"\0" for name in names)
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, compresslevel=6) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        _put(archive, "worker.sh", WORKER_SCRIPT.read_bytes())
        _put(archive, "manifest", manifest)
        _put(archive, "tree.tar", tree.getvalue())
    sha256 = hashlib.sha256(packed.getvalue()).hexdigest()
    path = out / f"codecvit-sync-{sha256[:12]}.tar.gz"
    path.write_bytes(packed.getvalue())
    return Bundle(path, sha256, len(names), total)


def _walk(root: Path) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        linked = [name for name in folders if (here / name).is_symlink()]
        folders[:] = sorted(
            name
            for name in folders
            if name not in linked
            and not name.startswith(".")
            and name not in SKIPPED
            and not name.endswith(SKIPPED_ENDINGS)
            and not (here / name / "pyvenv.cfg").exists()
        )
        for name in [*files, *linked]:
            path = here / name
            plain = path.is_file() or path.is_symlink()  # no sockets and pipes
            if plain and not name.startswith(".") and not name.endswith(SKIPPED_ENDINGS):
                found.append(os.fspath(path.relative_to(root)))
    return found


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    # Whole seconds; the real ones, for Python takes a changed file of the same size and time for
    # the one that it compiled.
    member.mtime = int(member.mtime)
    return member


def _put(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
