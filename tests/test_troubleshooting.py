"""Every message of ours that docs/troubleshooting.md quotes is one that the code gives."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"


def sources():
    """Strings of the package, with a mark for what is filled in, and the texts of scripts."""
    texts = [path.read_text() for path in [ROOT / "setup.sh", *ROOT.glob("scripts/**/*.sh")]]
    for path in [*ROOT.glob("src/**/*.py"), *ROOT.glob("scripts/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "\0" for v in node.values)
                texts.append("".join(parts))
    return texts


def rows():
    """Cells of every table row, without heads."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [re.split(r" \| ", line.strip("| ")) for line in lines if "| why |" not in line]


def quoted():
    """Code in the first column: our messages, and metrics, which are made of parts."""
    spans = [span for row in rows() for span in re.findall(r"`([^`]+)`", row[0])]
    return [span for span in spans if not span.startswith(("perf/", "train/", "/dev", "dmesg"))]


@pytest.fixture(scope="module")
def texts():
    return sources()


def found(fragment, texts):
    pattern = re.compile(".*?".join(map(re.escape, fragment.split("..."))), flags=re.S)
    return any(pattern.search(text) for text in texts)


@pytest.mark.parametrize("fragment", quoted())
def test_a_quoted_message_is_in_the_source(fragment, texts):
    assert found(fragment, texts), f"docs/troubleshooting.md quotes {fragment!r}, which nobody says"


def test_the_search_finds_only_what_is_there(texts):
    assert found("config.mesh asks for ... devices", texts)
    assert not found("config.mesh asks for ... chips", texts)
    assert not found("devices ... config.mesh asks for", texts)


def test_every_row_has_a_cause_and_a_remedy():
    assert len(quoted()) > 25
    for row in rows():
        assert len(row) == 3 and all(cell.strip() for cell in row), row
