"""A picture of `codecvit llava web` at work, in headless Chromium.

    python scripts/llava/web_picture.py MODEL VIDEO --out page.png --ask "Which digit is it?" \
        -- --num-frames 8 --num-images 2

Starts the page, drops the video on it, asks, waits for the answers, takes the picture, and prints
as JSON what the browser saw. Options behind `--` are those of `codecvit llava web`. Needs the extra
`web` and a Chromium or Chrome; neither a driver nor another package.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 300.0  # for any one thing to happen

# What the page shows, by the ids that it gives its parts.
LOOK = """(() => {
  const texts = (inside, what) =>
    [...document.querySelectorAll(`${inside} ${what}`)].map((e) => e.innerText.trim());
  return {
    title: document.title,
    told: texts("#cv-frames", ".cv-told").join(" "),
    frames: document.querySelectorAll("#cv-frames figure").length,
    veils: document.querySelectorAll("#cv-frames .cv-veil").length,
    asked: texts("#cv-chat", ".message.user"),
    answers: texts("#cv-chat", ".message.bot"),
    toasts: texts("body", ".toast-body"),
    open: !document.querySelector("#cv-question textarea")?.disabled,
    busy: document.querySelectorAll("#cv-chat .generating, #cv-chat .pending").length,
  };
})()"""
AT = """((id) => {
  const place = document.querySelector(id).getBoundingClientRect();
  return [place.x + place.width / 2, place.y + place.height / 2];
})"""


def main() -> int:
    """0 when the picture is taken."""
    mine, web = sys.argv[1:], []
    if "--" in mine:
        mine, web = mine[: mine.index("--")], mine[mine.index("--") + 1 :]
    args = _parser().parse_args(mine)
    browser = find_browser()
    if browser is None:
        raise SystemExit(f"web_picture.py: none of {', '.join(BROWSERS)} is here")
    with page(args.model, web) as address, Browser(browser, args.width, args.height) as tab:
        print(json.dumps(talk(tab, address, args.video, args.ask)), flush=True)
        args.out.write_bytes(tab.picture())
    return 0


def talk(tab: Browser, address: str, video: Path, questions: list[str]) -> dict[str, Any]:
    """Drops a video and asks; what the page showed then, and which servers it asked."""
    tab.open(address)
    ready = "!!document.querySelector('#cv-drop input[type=file]')"
    tab.until(lambda: tab.run(ready) and not tab.working(), "the page")

    def dropped() -> bool:
        # The zone is there before it listens.
        tab.drop(tab.run(f"{AT}('#cv-drop button')"), video)
        time.sleep(1)
        tab.run("0")
        return any("/upload" in url for url in tab.asked)

    tab.until(dropped, "the upload")
    tab.until(lambda: tab.run(f"{LOOK}.frames"), "frames")
    texts: list[list[str]] = []
    for number, question in enumerate(questions):
        tab.run("document.querySelector('#cv-question textarea').focus()")
        tab.call("Input.insertText", text=question)
        tab.press_enter()

        def answered(number: int = number) -> bool:
            seen = tab.run(LOOK)
            texts.append(seen["answers"][number:])
            return len(seen["answers"]) > number and not seen["busy"] and not tab.working()

        tab.until(answered, f"an answer to {question!r}")
    tab.run("document.querySelector('#cv-question textarea').blur()")
    time.sleep(0.5)  # what moves comes to rest
    foreign = [url for url in tab.asked if not url.startswith((address, "data:", "blob:"))]
    return {**tab.run(LOOK), "foreign": foreign, "complaints": tab.complaints}


@contextlib.contextmanager
def page(model: Path, options: list[str]) -> Iterator[str]:
    """Runs `codecvit llava web`; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "codecvit", "llava", "web", model, "--port", port, *options]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("http"):
                yield line.split()[0]
                break
        else:
            raise SystemExit(f"web_picture.py: the page ended with status {process.wait()}")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


class Browser:
    """A tab of a headless Chromium, spoken to by its pipe in the DevTools protocol."""

    def __init__(self, program: str, width: int, height: int) -> None:
        self._program, self._size = program, (width, height)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self._open: set[str] = set()

    def __enter__(self) -> Browser:
        self._profile = tempfile.TemporaryDirectory(prefix="codecvit-browser-")
        there, self._to = os.pipe()
        self._from, back = os.pipe()
        flags = [
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
            *("--disable-background-networking", "--disable-component-update"),
            f"--user-data-dir={self._profile.name}",
        ]
        # The browser reads from descriptor 3 and writes to 4.
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{there} 4>&{back}', "-", self._program, *flags],
            pass_fds=(there, back),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(there)
        os.close(back)
        self._buffer, self._number, self._session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for part in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{part}.enable")
        width, height = self._size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)  # our own group: the browser's processes
        self._process.wait(30)
        os.close(self._to)
        os.close(self._from)
        time.sleep(0.2)  # its last processes let go of the profile
        with contextlib.suppress(OSError):
            self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol; what happens meanwhile is noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def drop(self, place: list[float], file: Path) -> None:
        """Drops a file on a place of the page, as from the desktop."""
        data = {"items": [], "files": [str(file.absolute())], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=place[0], y=place[1], data=data)

    def press_enter(self) -> None:
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        self.call("Input.dispatchKeyEvent", type="keyDown", text="\r", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def picture(self) -> bytes:
        """PNG of what is to be seen."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def working(self) -> bool:
        """Whether a request of the page is still being answered, but for its heartbeat."""
        return bool(self._open)

    def until(self, happened: Any, what: str) -> None:
        """Waits until something is so."""
        end = time.monotonic() + SECONDS
        while not happened():
            if time.monotonic() > end:
                told = f"{self.run(LOOK)} {self.complaints} {self.asked[-5:]}"
                raise TimeoutError(f"{what} did not come: {told}")
            time.sleep(0.05)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], SECONDS)
            piece = os.read(self._from, 1 << 20) if ready else b""
            if not piece:
                raise TimeoutError("the browser does not answer")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            url = told["request"]["url"]
            self.asked.append(url)
            if "/heartbeat/" not in url:
                self._open.add(told["requestId"])
        elif method in ("Network.loadingFinished", "Network.loadingFailed"):
            self._open.discard(told["requestId"])
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.complaints.append(told["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"].get("text")))


def find_browser() -> str | None:
    """Path of a Chromium or Chrome, None if there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="PNG")
    parser.add_argument("--ask", action="append", required=True, help="a question; several times")
    parser.add_argument("--width", type=int, default=1180)
    parser.add_argument("--height", type=int, default=760)
    return parser


if __name__ == "__main__":
    sys.exit(main())
