"""The same judgements through the Batch API: one file of requests, replies within a day.

OUT/batches.json holds the ids, so that a later run only looks whether they are done.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...files import write_json
from ..mcq.records import ChunkFile, Record, collect
from .endpoint import ChatJudge, reply_of
from .judges import BrokenJudge, Reply
from .predictions import Job
from .rate import Todo, missing, record_of

STATE = "batches.json"
MOST_LINES, MOST_BYTES = 49_000, 190_000_000  # OpenAI takes 50,000 and 200 MB
_ENDED = ("completed", "expired", "cancelled")


class Batches:
    """Judgements by batches.

    Args:
      jobs: all of a file of predictions.
      judge: model and endpoint.
      out: folder of the results.
      run: `rate.describe_run`.
      poll: seconds between two looks.
      progress: told of (batches done, batches).
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        judge: ChatJudge,
        out: Path,
        run: dict[str, Any],
        poll: float = 60.0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._jobs, self._judge, self._out, self._run = jobs, judge, out, run
        self._endpoint, self._poll, self._progress = judge.endpoint, poll, progress
        self._batches: list[dict[str, Any]] = []

    def rate(self, retry_unparsed: bool = False) -> None:
        """Gets a line for each job that has none; waits until all batches are done.

        Replies that cannot be read are not asked for again in the same run.

        Raises:
          ResultsError: the folder holds another run, or unusable lines.
          JudgeError: the endpoint can't be reached; run again later.
          BrokenJudge: no request will do, or a batch was refused.
        """
        name, _ = missing(self._jobs, self._out, self._run)
        path = self._out / STATE
        if path.exists():
            self._batches = json.loads(path.read_text(encoding="utf-8"))
        self._recover()
        with ChunkFile(self._out, 0, 1) as file:
            self._wait(file, name)
            _, todo = missing(self._jobs, self._out, self._run, retry_unparsed)
            silent = [(job, attempt) for job, attempt in todo if not job.answered]
            file.write(
                record_of(job, attempt, name, self._run, [], None) for job, attempt in silent
            )
            for part, content in self._files([item for item in todo if item[0].answered]):
                self._submit(part, content)
            self._wait(file, name)

    def _files(self, todo: Todo) -> Iterator[tuple[Todo, bytes]]:
        """(jobs, content) of each file."""
        part: list[tuple[Job, int]] = []
        lines: list[bytes] = []
        size = 0
        for job, attempt in todo:
            line = {
                "custom_id": f"{job.index}-{attempt}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": self._judge.body(job),
            }
            text = (json.dumps(line) + "\n").encode()
            if part and (len(part) == MOST_LINES or size + len(text) > MOST_BYTES):
                yield part, b"".join(lines)
                part, lines, size = [], [], 0
            part.append((job, attempt))
            lines.append(text)
            size += len(text)
        if part:
            yield part, b"".join(lines)

    def _recover(self) -> None:
        """Ids of batches that were sent by a run that died before it noted them down."""
        unknown = [batch for batch in self._batches if batch["id"] is None]
        if not unknown:
            return
        rows = self._endpoint.json("GET", "/batches?limit=100").get("data") or []
        ids = {(row.get("metadata") or {}).get("key"): row["id"] for row in rows}
        for batch in unknown:
            batch["id"] = ids.get(batch["key"])
        self._batches = [batch for batch in self._batches if batch["id"] is not None]
        self._save()

    def _submit(self, part: Todo, content: bytes) -> None:
        border = uuid.uuid4().hex
        entry = {
            "id": None,
            "key": border,
            "jobs": [[job.index, attempt] for job, attempt in part],
            "done": False,
        }
        self._batches.append(entry)
        self._save()  # before it is sent: what is paid for is found again
        head = (
            f'--{border}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{border}\r\nContent-Disposition: form-data; name="file"; '
            f'filename="requests.jsonl"\r\nContent-Type: application/jsonl\r\n\r\n'
        )
        data = head.encode() + content + f"\r\n--{border}--\r\n".encode()
        kind = f"multipart/form-data; boundary={border}"
        uploaded = self._endpoint.request("POST", "/files", data, kind, _identified)
        wanted = {
            "input_file_id": uploaded["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"key": border},
        }
        body = json.dumps(wanted).encode()
        batch = self._endpoint.request("POST", "/batches", body, "application/json", _identified)
        entry["id"] = batch["id"]
        self._save()

    def _wait(self, file: ChunkFile, name: str) -> None:
        """Until no batch is open."""
        while waiting := [batch for batch in self._batches if not batch["done"]]:
            for batch in waiting:
                told = self._endpoint.json("GET", f"/batches/{batch['id']}")
                if told.get("status") == "failed":
                    batch["done"] = True
                    self._save()
                    reason = json.dumps(told.get("errors"))[:300]
                    raise BrokenJudge(f"batch {batch['id']} was refused: {reason}")
                if told.get("status") in _ENDED:
                    file.write(self._records(batch, told, name))
                    batch["done"] = True
                    self._save()
            self._progress(sum(b["done"] for b in self._batches), len(self._batches))
            if not all(batch["done"] for batch in waiting):
                time.sleep(self._poll)

    def _records(self, batch: dict[str, Any], told: dict[str, Any], name: str) -> list[Record]:
        found: dict[str, Reply | str] = {}
        for field in ("error_file_id", "output_file_id"):
            if told.get(field):
                path = f"/files/{told[field]}/content"
                found.update(self._endpoint.request("GET", path, None, "text/plain", _replies))
        # It may have been read before, by a run that died before it noted that down.
        done = collect(self._out, name)
        records = []
        for index, attempt in batch["jobs"]:
            if index in done and done[index]["attempt"] >= attempt:
                continue
            reply = found.get(
                f"{index}-{attempt}", f"the batch is {told['status']} without a reply"
            )
            error = reply if isinstance(reply, str) else None
            replies = [] if isinstance(reply, str) else [reply]
            job = self._jobs[index]
            records.append(record_of(job, attempt, name, self._run, replies, error))
        return records

    def _save(self) -> None:
        write_json(self._out / STATE, self._batches)


def _identified(content: bytes) -> dict[str, Any]:
    value = json.loads(content)
    if not isinstance(value, dict) or not isinstance(value.get("id"), str):
        raise ValueError("the answer has no id")
    return value


def _replies(content: bytes) -> dict[str, Reply | str]:
    """Replies, or why there is none, by custom_id."""
    found: dict[str, Reply | str] = {}
    for line in content.decode().split("\n"):
        if not line.strip():
            continue
        row = json.loads(line)
        response = row.get("response") or {}
        if row.get("error") or response.get("status_code") != 200:
            told = row.get("error") or response.get("body")
            found[row["custom_id"]] = f"{response.get('status_code')}: {json.dumps(told)[:300]}"
            continue
        try:
            found[row["custom_id"]] = reply_of(response.get("body"))
        except ValueError as error:
            found[row["custom_id"]] = str(error)
    return found
