"""A local stand-in for the hub: one data set, perhaps gated, a connection that breaks once."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHA = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secretsecretsecret"


class Hub(ThreadingHTTPServer):
    """Serves `files` (name -> bytes) as the data set `repo`.

    Attributes:
      gated: whoever has no token is refused; `seen` collects (method, path, Range, authorised).
      break_once: the first answer to a GET of this file ends in its middle.
      refused: name of a file that the server does not give.
      claim: bytes that a file says to have, in place of its own.
    """

    daemon_threads = True

    def __init__(self, repo, files):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo, self.files = repo, files
        self.gated, self.break_once, self.claim, self.refused, self.seen = (
            False,
            None,
            None,
            None,
            [],
        )
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        hub, path = self.server, self.path.split("?")[0]
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        hub.seen.append((self.command, path, self.headers.get("Range"), allowed))
        api, resolve = f"/api/datasets/{hub.repo}", f"/datasets/{hub.repo}/resolve/"
        if path.startswith(f"{api}/tree/"):
            tree = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in hub.files.items()
            ]
            return self.send(200, json.dumps(tree).encode(), body)
        if path.startswith(api):
            siblings = [
                {"rfilename": n, "size": hub.claim or len(c), "blobId": n}
                for n, c in hub.files.items()
            ]
            told = {"_id": "0", "id": hub.repo, "sha": SHA, "siblings": siblings, "private": False}
            told |= {"disabled": False, "gated": hub.gated, "tags": [], "downloads": 0, "likes": 0}
            return self.send(200, json.dumps(told).encode(), body)
        if not path.startswith(resolve):
            return self.send(404, b"", body, {"X-Error-Code": "RepoNotFound"})
        if hub.gated and not allowed:
            return self.send(401, b"", body, {"X-Error-Code": "GatedRepo"})
        name = path[len(resolve) :].split("/", 1)[1]
        if name == hub.refused:
            return self.send(403, b"", body)
        content = hub.files[name]
        headers = {"X-Repo-Commit": SHA, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        start = int((self.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if body and hub.break_once == name:
            hub.break_once = None
            return self.send(200, content, body, headers, cut=len(content) // 2)
        return self.send(206 if start else 200, content[start:], body, headers)

    def send(self, status, content, body, headers=None, cut=None):
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
