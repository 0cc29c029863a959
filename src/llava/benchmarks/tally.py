"""What an evaluation through lmms-eval showed, in files: counts by task, and a line per request.

lmms-eval keeps replies and scores; these files say what the model saw, and how many tokens it took.
"""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

from ...codec.llava.rows import json_line
from ...files import write_atomic


class Tally:
    """Collects records of requests; the last one of a request counts.

    Args:
      folder: the files come here; None keeps nothing.
      rank: of this process, part of the files' names.
      about: what decided the answers, at the head of the counts.
    """

    def __init__(self, folder: str | None, rank: int, about: dict[str, Any]) -> None:
        self._folder = None if folder is None else Path(folder)
        self._rank, self._about = rank, about
        self._records: dict[tuple[Any, ...], dict[str, Any]] = {}

    def add(self, place: tuple[Any, ...], record: dict[str, Any]) -> None:
        """One request: task, split, doc_id, status, sources, tokens, ..."""
        self._records[place] = record

    def summary(self, visuals: dict[str, Any]) -> dict[str, Any]:
        """Counts by task, and what decided the visuals."""
        tasks: dict[str, Any] = {}
        for name in sorted({record["task"] for record in self._records.values()}):
            records = [r for r in self._records.values() if r["task"] == name]
            sources = collections.Counter(s for r in records for s in r["sources"])
            told = {"requests": len(records), "sources": dict(sorted(sources.items()))}
            told["statuses"] = dict(collections.Counter(r["status"] for r in records))
            for kind in ("visual_tokens", "text_tokens"):
                known = [r[kind] for r in records if r[kind] is not None]
                told[kind] = round(sum(known) / len(known), 2) if known else None
            tasks[name] = told
        return {**self._about, "visuals": visuals, "tasks": tasks}

    def write(self, visuals: dict[str, Any]) -> None:
        """Writes visuals-rank<N>.json and requests-rank<N>.jsonl."""
        summary = self.summary(visuals)
        for name, told in summary["tasks"].items():
            counts = ", ".join(f"{k} {v}" for k, v in told["sources"].items())
            print(f"codecvit_llava: {name}: {told['requests']} requests; visuals: {counts}")
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = b"".join(map(json_line, self._records.values()))
        write_atomic(self._folder / f"requests-rank{self._rank}.jsonl", lines)
        content = json.dumps(summary, indent=1) + "\n"
        write_atomic(self._folder / f"visuals-rank{self._rank}.json", content.encode())
