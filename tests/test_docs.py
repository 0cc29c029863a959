"""The documents are true: links lead somewhere, named verbs and files exist, no private paths."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import codecvit
from codecvit.__main__ import VERBS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
COMING_FROM = ROOT / "docs" / "coming_from.md"

# Absolute paths of somebody's machine. Written so that the pattern does not match itself.
PRIVATE = re.compile(r"(?<![\w.$}>])/(?:work|farm|root)/|/(?:home|Users)/\w")


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def code_spans(text: str) -> list[str]:
    return re.findall(r"^```.*?^```|`[^`\n]+`", text, flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """GitHub's anchor of every heading."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def rows() -> list[tuple[str, str]]:
    """(theirs, here) of every row of every table in docs/coming_from.md."""
    lines = [line for line in COMING_FROM.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert all(len(row) == 2 for row in cells if row[0] != "---|---"), "a row without two cells"
    return [(row[0], row[1]) for row in cells if len(row) == 2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_resolve(page: Path) -> None:
    text = without_code(page.read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text)
    for target in (a or b for a, b in targets):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(linked), f"{page.name}: {target} has no such heading"


def test_coming_from_names_only_what_exists() -> None:
    verbs, attributes, files = set(), set(), set()
    for _, here in rows():
        code = " ".join(code_spans(here))
        verbs |= set(re.findall(r"\bcodecvit ([a-z][a-z-]*)", code))
        attributes |= set(re.findall(r"\bcodecvit\.([a-z_]+)", code))
        files |= set(
            re.findall(r"(?<![\w/])(?:(?:scripts|docs|src)/)?[\w-]+\.(?:sh|md|toml|txt|py)\b", code)
        )
    assert verbs == set(VERBS)
    parts = {path.stem for path in (ROOT / "src").iterdir()}
    assert attributes <= parts | set(codecvit.__all__)
    missing = [name for name in files if not (ROOT / name).exists()]
    assert files and not missing


def test_coming_from_gives_a_reason_for_what_is_not_offered() -> None:
    for theirs, here in rows():
        for reason in re.findall(r"not offered(.*)", here):
            assert re.match(r": \S+ \S+ \S+", reason), f"{theirs}: not offered, but why?"
        assert not re.search("planned|not yet", here), theirs


def test_no_file_names_a_private_path() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file():
            text = path.read_bytes().decode(errors="replace")
            found += [f"{name}: {match.group()}" for match in PRIVATE.finditer(text)]
    assert not found, found


def test_the_private_path_pattern_finds_and_spares() -> None:
    for text in (
        "cd /" + "work/main",
        '"/' + 'root/.ssh"',
        "/home" + "/jane/x",
        "/Users" + "/jane",
    ):
        assert PRIVATE.search(text), text
    for text in ("$OUT/" + "work/run", "runs/" + "work/a", "/home" + "/<name>/x", "at home/work"):
        assert not PRIVATE.search(text), text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_verbs_and_configs_that_a_page_names_exist(page: Path) -> None:
    code = " ".join(code_spans(page.read_text()))
    verbs = set(re.findall(r"(?<![\w/.-])codecvit ([a-z][a-z-]*)", code))
    assert verbs <= set(VERBS), verbs - set(VERBS)
    configs = set(re.findall(r"src/configs/[a-z0-9_]+\.py", code))
    assert all((ROOT / config).exists() for config in configs), configs
