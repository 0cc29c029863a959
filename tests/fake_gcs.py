"""A stand-in for Google Cloud Storage: its JSON API as far as gcsfs, Orbax and TensorStore use it.

Objects live in memory; there are no folders, as there. https://cloud.google.com/storage/docs/json_api
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

BUCKET = "bucket"


@dataclasses.dataclass
class Store:
    """The bucket.

    Attributes:
      objects: content and generation by name.
      environment: variables that make the clients of a process come here.
    """

    objects: dict[str, tuple[bytes, int]] = dataclasses.field(default_factory=dict)
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    generation: int = 0
    uploads: dict[str, tuple[str, bytearray]] = dataclasses.field(default_factory=dict)
    lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)

    def put(self, name: str, content: bytes) -> None:
        self.generation += 1
        self.objects[name] = (content, self.generation)

    def about(self, name: str) -> dict[str, Any]:
        content, generation = self.objects[name]
        when = "2026-01-01T00:00:00.000Z"
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": BUCKET,
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "timeCreated": when,
            "updated": when,
        }


@contextlib.contextmanager
def serving() -> Iterator[Store]:
    """Runs the server in threads of this process."""
    store = Store()
    handler = type("BoundHandler", (_Handler,), {"store": store})
    server = _Server(("127.0.0.1", 0), handler)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    store.environment.update(
        STORAGE_EMULATOR_HOST=url,
        GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",
        TENSORSTORE_GCS_HTTP_URL=url,
        GOOGLE_AUTH_TOKEN_FOR_TESTING="none",
        GOOGLE_CLOUD_PROJECT="none",
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that has hung up
            super().handle_error(*_)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        with self.store.lock:
            self._answer(url.path, query, body)

    do_GET = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815

    def _answer(self, path: str, query: dict[str, str], body: bytes) -> None:
        store = self.store
        if path == "/batch/storage/v1":
            return self._batch(body.decode())
        found = re.fullmatch(
            r"(/download|/upload)?/storage/v1/b/[^/]+(/o(?:/([^/]*)(/.*)?)?)?", path
        )
        if not found:
            return self._send(404, {"error": {"code": 404, "message": path}})
        kind, objects, name, action = found[1], found[2], found[3], found[4]
        name = None if name is None else urllib.parse.unquote(name)
        if objects is None:
            return self._send(200, {"kind": "storage#bucket", "name": BUCKET})
        if kind == "/upload":
            return self._upload(query, body)
        if name is None:
            return self._list(query)
        if name not in store.objects:
            return self._send(404, {"error": {"code": 404, "message": f"No such object: {name}"}})
        if not self._precondition(name, query):
            return None
        if action:  # rewriteTo or moveTo
            target = urllib.parse.unquote(action.rsplit("/", 1)[1])
            store.put(target, store.objects[name][0])
            if action.startswith("/moveTo"):
                del store.objects[name]
                return self._send(200, store.about(target))
            return self._send(200, {"done": True, "resource": store.about(target)})
        if self.command == "DELETE":
            del store.objects[name]
            return self._send(204, b"")
        if query.get("alt") == "media" or kind == "/download":
            return self._content(*store.objects[name])
        return self._send(200, store.about(name))

    def _precondition(self, name: str, query: dict[str, str]) -> bool:
        generation = str(self.store.objects.get(name, (b"", 0))[1])
        if query.get("ifGenerationMatch", generation) != generation:
            self._send(412, {"error": {"code": 412, "message": "conditionNotMet"}})
            return False
        if query.get("ifGenerationNotMatch") == generation:
            self._send(304, b"")
            return False
        return True

    def _content(self, content: bytes, generation: int) -> None:
        headers = {"X-Goog-Generation": str(generation)}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return self._send(200, content, headers)
        size = len(content)
        if wanted[1]:
            begin, end = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1) + 1
        else:
            begin, end = max(size - int(wanted[2]), 0), size
        if begin >= size:
            return self._send(416, b"")
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        return self._send(206, content[begin:end], headers)

    def _upload(self, query: dict[str, str], body: bytes) -> None:
        store, kind, name = self.store, query.get("uploadType"), query.get("name", "")
        if kind == "multipart":
            about, content = re.match(
                rb"--[^\n]*\r?\n.*?\r?\n\r?\n(.*?)\r?\n--[^\n]*\r?\n.*?\r?\n\r?\n(.*)\r?\n--[^\n]*--\s*\Z",
                body,
                re.S,
            ).groups()
            name, body = json.loads(about)["name"], content
        elif kind == "resumable" and "upload_id" not in query:
            number = str(len(store.uploads))
            store.uploads[number] = (name or json.loads(body)["name"], bytearray())
            url = f"http://{self.headers['Host']}{self.path}&upload_id={number}"
            return self._send(200, {}, {"Location": url})
        elif kind == "resumable":
            name, sofar = store.uploads[query["upload_id"]]
            sofar += body
            total = self.headers["Content-Range"].rsplit("/", 1)[1]
            if total == "*" or len(sofar) < int(total):
                return self._send(308, b"", {"Range": f"bytes=0-{len(sofar) - 1}"})
            body = bytes(sofar)
        if not self._precondition(name, query):
            return None
        store.put(name, body)
        return self._send(200, store.about(name))

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, folders = [], set()
        for name in sorted(self.store.objects):
            inside = name.startswith(prefix)
            inside &= query.get("startOffset", "") <= name < query.get("endOffset", "\uffff")
            if not inside:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self.store.about(name))
        self._send(200, {"items": items, "prefixes": sorted(folders)})

    def _batch(self, body: str) -> None:
        parts = []
        for name in re.findall(r"DELETE /storage/v1/b/[^/]+/o/(\S+) HTTP", body):
            name = urllib.parse.unquote(name.split("?")[0])
            code = 204 if self.store.objects.pop(name, None) else 404
            parts.append(
                f"--batch\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {code} x\r\n\r\n"
            )
        text = "".join(parts) + "--batch--"
        self._send(200, text.encode(), {"Content-Type": "multipart/mixed; boundary=batch"})

    def _send(self, code: int, content: Any, headers: dict[str, str] | None = None) -> None:
        plain = isinstance(content, bytes)
        data = content if plain else json.dumps(content).encode()
        self.send_response(code)
        kind = "application/octet-stream" if plain else "application/json"
        for key, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(key, value)
        if code not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if code not in (204, 304):
            self.wfile.write(data)
