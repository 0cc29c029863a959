"""Made predictions, judges of known opinion, and a stand-in for an OpenAI-compatible endpoint."""

from __future__ import annotations

import collections
import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from codecvit.llava.open_ended.judges import Reply

SECRET = "sk-made-up-secret-4711"


def write_predictions(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def qa_rows(count):
    """Answers of which every third is wrong and none is missing."""
    return [
        {
            "question_id": f"q{i}",
            "question": f"What is number {i}?",
            "answer": f"thing{i}",
            "pred": f"a thing{i}" if i % 3 else "something else",
        }
        for i in range(count)
    ]


class Opinion:
    """A judge by a rule of the job; counts what it was asked, dies on cue."""

    def __init__(self, rule, die_after=None):
        self.rule, self.die_after = rule, die_after
        self.asked = []
        self._lock = threading.Lock()

    def ask(self, job):
        with self._lock:
            if self.die_after is not None and len(self.asked) >= self.die_after:
                raise RuntimeError("the process dies")
            self.asked.append((job.id, job.aspect))
        said = self.rule(job)
        if isinstance(said, Exception):
            raise said
        return said if isinstance(said, Reply) else Reply(said, tokens=(10, 2))

    def describe(self):
        return {"id": "opinion"}


class Server:
    """POST /chat/completions by a script, and the Batch API.

    `script(body, number)`: number counts the requests with this user text, from 0; gives
    (status, headers, bytes), or a reply's text, or None for no content.
    """

    def __init__(self, script):
        self.script = script
        self.requests = []
        self.seen = collections.Counter()
        self.files, self.batches = {}, {}
        self.polls = 0
        self.piece = 1 << 30  # bytes of a response at a time
        self.open_polls = 1
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()

    def post(self, body):
        text = body["messages"][1]["content"]
        with self._lock:
            number = self.seen[text]
            self.seen[text] += 1
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            said = self.script(body, number)
        finally:
            with self._lock:
                self._now -= 1
        if isinstance(said, tuple):
            return said
        return 200, {}, json.dumps(completion(said)).encode()


def completion(text):
    return {
        "model": "made-2026",
        "choices": [{"message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 9},
    }


@contextlib.contextmanager
def serving(script):
    """A Server on a free port; gives it with its `url`."""
    server = Server(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def _body(self):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _send(self, status, headers, content):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                for place in range(0, len(content), server.piece):
                    self.wfile.write(content[place : place + server.piece])
                    if server.piece < len(content):
                        threading.Event().wait(0.05)

        def do_POST(self):
            raw = self._body()
            server.requests.append((self.path, dict(self.headers), raw))
            if self.path == "/v1/chat/completions":
                self._send(*server.post(json.loads(raw)))
            elif self.path == "/v1/files":
                name = f"file-{len(server.files)}"
                server.files[name] = re.search(rb"jsonl\r\n\r\n(.*)\r\n--", raw, re.S)[1]
                self._send(200, {}, json.dumps({"id": name}).encode())
            elif self.path == "/v1/batches":
                name, asked = f"batch-{len(server.batches)}", json.loads(raw)
                server.batches[name] = {
                    "input": asked["input_file_id"],
                    "metadata": asked["metadata"],
                    "polls": 0,
                }
                self._send(200, {}, json.dumps({"id": name, "status": "validating"}).encode())
            else:
                self._send(404, {}, b"{}")

        def do_GET(self):
            server.requests.append((self.path, dict(self.headers), b""))
            parts = self.path.removeprefix("/v1/").partition("?")[0].split("/")
            if parts[0] == "files":
                self._send(200, {}, server.files[parts[1]])
                return
            if len(parts) == 1:
                rows = [
                    {"id": name, "metadata": batch["metadata"]}
                    for name, batch in server.batches.items()
                ]
                self._send(200, {}, json.dumps({"data": rows}).encode())
                return
            batch = server.batches[parts[1]]
            batch["polls"] += 1
            server.polls += 1
            if batch["polls"] <= server.open_polls:
                self._send(200, {}, b'{"status": "in_progress"}')
                return
            lines = []
            for line in server.files[batch["input"]].splitlines():
                row = json.loads(line)
                status, _, content = server.post(row["body"])
                body = json.loads(content)
                lines.append(
                    {
                        "custom_id": row["custom_id"],
                        "response": {"status_code": status, "body": body},
                        "error": None,
                    }
                )
            out = f"out-{parts[1]}"
            server.files[out] = "".join(json.dumps(line) + "\n" for line in lines).encode()
            self._send(200, {}, json.dumps({"status": "completed", "output_file_id": out}).encode())

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address):
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def slowly(seconds, said):
    threading.Event().wait(seconds)  # tests replace time.sleep
    return said
