"""After a sync the tree on each worker equals the local one, and nothing else there was touched."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def content(root: Path) -> dict[str, tuple[str, int]]:
    """Path -> (text or target of a link, mode)."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in files + [f for f in folders if (Path(folder) / f).is_symlink()]:
            path = Path(folder) / name
            text = str(path.readlink()) if path.is_symlink() else path.read_bytes().decode("latin1")
            found[os.path.relpath(path, root)] = (text, path.lstat().st_mode & 0o777)
    return found


HOSTILE = ["a b.txt", "-rf", "x;touch INJECTED", "$(touch INJECTED)", "new\nline", "q'\"`", "é日"]


@pytest.fixture
def tree(tmp_path):
    """A git tree with ignored files, new ones, a link, a program and hostile names."""
    root = tmp_path / "my tree"
    files = {name: f"content of {name}" for name in HOSTILE}
    files |= {"src/a.py": "a", "src/deep/b.py": "b", "run.sh": "#!/bin/sh\n", "gone.txt": "gone"}
    files |= {".gitignore": ".venv/\ncheckpoints/\n", "dir\n/x y/f": "f"}
    write(root, files)
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("src")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    write(root, {"new.py": "not added yet", ".venv/bin/x": "x", "checkpoints/1/big": "big"})
    (root / "gone.txt").unlink()
    return root


def expected(tree: Path) -> dict:
    return {
        name: value
        for name, value in content(tree).items()
        if not name.startswith((".git/", ".venv/", "checkpoints/"))
    }


def test_workers_get_the_tree_and_lose_only_what_a_sync_brought(cloud, tree):
    for worker in (0, 1):
        mine = cloud.home(worker) / "codecvit"
        write(mine, {"mine.txt": "of the user", "src/results.txt": "12", "src/a.py": "edited"})
    cloud.call("sync", f"--dir={tree}")
    users = {"mine.txt": "of the user", "src/results.txt": "12"}
    for worker in (0, 1):
        there = content(cloud.home(worker) / "codecvit")
        assert {name: there.pop(name)[0] for name in users} == users
        assert there == expected(tree)

    # Removed, renamed, changed without a change of size, a file where a folder was and reverse.
    (tree / "src/deep/b.py").unlink()
    write(tree, {"src/a.py": "A", "src/c.py": "a"})
    for name in ("-rf", "new\nline", "dir\n/x y/f"):
        (tree / name).unlink()
    (tree / "dir\n/x y").rmdir()
    (tree / "dir\n").rmdir()
    (tree / "dir\n").write_text("a file now")
    (tree / "new.py").unlink()
    write(tree, {"new.py/inner": "a folder now"})
    cloud.call("sync", "--dir=.", cwd=tree)
    for worker in (0, 1):
        there = content(cloud.home(worker) / "codecvit")
        assert {name: there.pop(name)[0] for name in users} == users
        assert there == expected(tree)
        assert not (cloud.home(worker) / "codecvit/src/deep").exists()
        assert not [path.name for path in cloud.home(worker).glob("*.tar.gz")]
        assert not list((cloud.home(worker) / ".codecvit").glob("stage*"))
    assert not list(cloud.folder.rglob("INJECTED"))


def test_what_was_not_synced_is_not_found(cloud, tree):
    """And the other way round: a worker runs what it got, not what lies here."""
    cloud.call("sync", f"--dir={tree}")
    write(tree, {"later.py": "print('later')"})
    show = ["ssh", "--", "bash", "-c", "cd codecvit && cat new.py && cat later.py"]
    out = cloud.call(*show, code=1)
    for worker in (0, 1):
        assert f"[worker {worker}] not added yet" in out
        assert f"worker {worker}: cat: later.py: No such file" in out
    cloud.call("sync", f"--dir={tree}")
    assert "[worker 1] print('later')" in cloud.call(*show[:-1], "cat codecvit/later.py")


def test_a_transfer_that_is_cut_off_is_repeated(cloud, tree):
    cloud.write(cut=1)
    out = cloud.call("sync", f"--dir={tree}", "--parallel=1")
    assert "unpacking failed on workers [0]; copying again" in out
    for worker in (0, 1):
        assert content(cloud.home(worker) / "codecvit") == expected(tree)


def test_outside_git_caches_and_checkpoints_stay_here(cloud, tmp_path):
    root = tmp_path / "plain"
    write(root, {"a.py": "a", "src/b.py": "b", "src/__pycache__/b.pyc": "x", ".git2/x": "x"})
    write(root, {"checkpoints/1": "x", "env/pyvenv.cfg": "x", "env/bin/x": "x", "a.egg-info/x": ""})
    cloud.call("sync", f"--dir={root}", "--remote-dir=deep/plain")
    assert set(content(cloud.home(1) / "deep/plain")) == {"a.py", "src/b.py"}


def test_too_much_and_nothing_are_refused(cloud, tmp_path):
    write(tmp_path / "t", {"small": "s", "large file.bin": "l" * 2_000_000})
    out = cloud.call("sync", f"--dir={tmp_path}/t", "--max-mb=1", code=2)
    assert "2 MB to sync, more than --max-mb 1; the largest: 'large file.bin' (2 MB)" in out
    (tmp_path / "empty").mkdir()
    assert "holds no files" in cloud.call("sync", f"--dir={tmp_path}/empty", code=2)
    assert "is not a folder" in cloud.call("sync", f"--dir={tmp_path}/none", code=2)
    for worker in (0, 1):
        (cloud.home(worker) / "itself").symlink_to(".")
    out = cloud.call("sync", f"--dir={tmp_path}/t", "--remote-dir=itself", code=1)
    assert "must be a folder of its own" in out
    assert not list(cloud.home(0).glob("small"))


@pytest.mark.slow
def test_a_running_script_is_not_changed_under_its_feet(cloud, tmp_path):
    """bash reads a script as it goes: the old file must live on until it ends."""
    root = tmp_path / "t"
    write(root, {"s.sh": "sleep 0.6\necho old end\n"})
    cloud.call("sync", f"--dir={root}")
    cloud.call("run", "--job=j", "--", "bash", "s.sh")
    write(root, {"s.sh": "sleep 0.6\nexit 7  end\n"})
    cloud.call("sync", f"--dir={root}")
    assert "[worker 1] old end" in cloud.call("logs", "--follow")
