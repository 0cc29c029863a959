"""Stands in front of the page's server: what is not needed is not there.

Gradio serves much more than this page uses: files by path, a proxy, its interface for programs, run
histories. The guard lets through the few addresses that the page asks for. It speaks ASGI and knows
nothing of Gradio but these addresses.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/gradio_api"
UPLOAD = f"{API}/upload"
JOIN = f"{API}/queue/join"
_PAGES = frozenset({"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json"})
_CALLS = frozenset({f"{API}/queue/data", f"{API}/upload_progress", f"{API}/startup-events"})
_FOLDERS = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/")
_POSTS = frozenset({UPLOAD, JOIN, f"{API}/cancel", f"{API}/reset"})
_CALL_BYTES = 1 << 20  # of what is not an upload: questions and settings
_FORM_BYTES = 1 << 16  # around the file in an upload
_UPLOADS = 4  # times the largest upload may lie on the disk at once

HEADERS = {
    # The page's own scripts are inline; nothing comes from, or goes to, another server.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' "
    "data:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Refused(Exception):
    """A request that is not let through.

    Attributes:
      status: of HTTP.
      reason: for who asked.
    """

    def __init__(self, status: int, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(reason)


class Guard:
    """ASGI middleware.

    Args:
      app: what is guarded.
      uploads: folder that uploads are kept in; calls may name no file outside of it.
      max_upload: bytes of an upload.
      any_host: answer whatever name the page is called by; else only names of this machine's
        loopback, so that no foreign page can reach it by a name that leads here (DNS rebinding).
    """

    def __init__(self, app: App, uploads: Path, max_upload: int, any_host: bool) -> None:
        self._app, self._uploads, self._max_upload = app, uploads.resolve(), max_upload
        self._any_host = any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a web socket: nothing of ours; the server closes it
        try:
            self._check(scope)
            if scope["path"] == JOIN and scope["method"] == "POST":
                receive = await self._checked_call(receive)
        except Refused as refused:
            await _refuse(refused, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), text.encode()) for name, text in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        await self._app(scope, receive, with_headers)

    def _check(self, scope: Scope) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if not self._any_host and not is_loopback(_host(headers.get(b"host", b"").decode("latin"))):
            raise Refused(421, "this page is served to this machine alone")
        path, method = scope["path"], scope["method"]
        if "\\" in path or ".." in path or "//" in path or "\0" in path:
            raise Refused(404, "there is no such page")
        if method in ("GET", "HEAD"):
            if path not in _PAGES | _CALLS and not path.startswith(_FOLDERS):
                raise Refused(404, "there is no such page")
            return
        if method != "POST" or path not in _POSTS:
            raise Refused(404, "there is no such page")
        most = self._max_upload + _FORM_BYTES if path == UPLOAD else _CALL_BYTES
        stated = headers.get(b"content-length", b"").decode("latin")
        if not stated.isdecimal():
            raise Refused(411, "the request does not state its length")
        if int(stated) > most:
            raise Refused(413, f"the request is larger than {most:,} bytes")
        if path == UPLOAD and _folder_bytes(self._uploads) > _UPLOADS * self._max_upload:
            raise Refused(507, "too many uploads wait to be read: try again in some minutes")

    async def _checked_call(self, receive: Receive) -> Receive:
        """Reads the body of a call and looks for files in it that are no uploads."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the request ended half-way")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > _CALL_BYTES:
                raise Refused(413, f"the request is larger than {_CALL_BYTES:,} bytes")
        try:
            paths = list(_paths(json.loads(body)))
        except (ValueError, RecursionError) as error:
            raise Refused(400, "the request is no JSON") from error
        for path in paths:
            if not isinstance(path, str) or not is_below(path, self._uploads):
                raise Refused(403, "the request names a file that is no upload")
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return unread.pop() if unread else await receive()

        return again


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine to itself."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_below(path: str, folder: Path) -> bool:
    """Whether a path is that of a file below a folder, links followed."""
    try:
        found = Path(path).resolve()
        return found.is_relative_to(folder) and found.is_file()
    except (OSError, ValueError):
        return False


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0]


def _paths(value: Any) -> Iterator[Any]:
    """Everything that Gradio could take for the path of a file."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        for item in value.values():
            yield from _paths(item)
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item)


def _folder_bytes(folder: Path) -> int:
    sizes = 0
    for path in folder.rglob("*"):
        try:
            sizes += path.stat().st_size if path.is_file() else 0
        except OSError:  # removed since it was listed
            continue
    return sizes


async def _refuse(refused: Refused, send: Send) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    start = {"type": "http.response.start", "status": refused.status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": f"{refused.reason}\n".encode()})
