"""Requests to an OpenAI-compatible endpoint, over plain HTTP, with bounded patience.

The key comes from the environment, travels in one header to one host, and appears nowhere else.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from .judges import BrokenJudge, JudgeError, Reply
from .predictions import Job
from .prompts import messages

KEY = "OPENAI_API_KEY"
URL = "OPENAI_BASE_URL"
OPENAI = "https://api.openai.com/v1"
TRIES = 6
_LONGEST_WAIT = 60.0
_LARGEST = 256 << 20  # bytes of a response: a batch's results are one
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_HOPELESS = frozenset({401, 402, 403, 404, 405})
_SHOWN = 300


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another host."""

    def redirect_request(self, *args: Any) -> None:
        return None


class Endpoint:
    """Where requests go.

    Args:
      url: such as https://api.openai.com/v1; None reads OPENAI_BASE_URL, else it is OpenAI's.
      timeout: seconds for one request.
      tries: requests at most, with growing pauses between them.
      pause: seconds before the second; doubles, to 60 at most, unless the endpoint says how long.
      environment: of the process.

    Raises:
      ValueError: an impossible URL, key or time, or no key for OpenAI.
    """

    def __init__(
        self,
        url: str | None = None,
        timeout: float = 60.0,
        tries: int = TRIES,
        pause: float = 1.0,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.url = (url or environment.get(URL) or OPENAI).rstrip("/")
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{URL} must be such as {OPENAI} or http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            # Not shown: it may be a secret, and the URL goes into results.
            raise ValueError(f"{URL} holds a user name or a query: give the key as {KEY}")
        self._key = environment.get(KEY, "").strip()
        if not (self._key.isascii() and all(33 <= ord(letter) < 127 for letter in self._key)):
            raise ValueError(f"{KEY} holds characters that no key has: it is not shown here")
        if timeout <= 0:
            raise ValueError(f"timeout = {timeout} must be more than 0 seconds")
        if not self._key and self.url == OPENAI:
            raise ValueError(f"{KEY} is not set; it is needed for {OPENAI}, and read from there")
        self._timeout, self._tries, self._pause = timeout, tries, pause
        self._open = urllib.request.build_opener(_StayHere()).open

    def holds_key(self, text: str) -> bool:
        """Whether a text would give the key away."""
        return bool(self._key) and self._key in text

    def json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that a request is answered with; errors as `request`."""

        def parsed(content: bytes) -> dict[str, Any]:
            value = json.loads(content)
            if not isinstance(value, dict):
                raise ValueError("no JSON object")
            return value

        data = None if body is None else json.dumps(body).encode()
        return self.request(method, path, data, "application/json", parsed)

    def request(
        self,
        method: str,
        path: str,
        data: bytes | None,
        kind: str,
        parsed: Callable[[bytes], Any],
    ) -> Any:
        """One request, repeated while that may help.

        Args:
          method: of HTTP.
          path: below the endpoint's URL.
          data: to send.
          kind: its content type.
          parsed: reads the answer; its ValueError is a reason to ask again, too.

        Raises:
          JudgeError: it failed to the end, or this one request is refused.
          BrokenJudge: no request will do: wrong key, no credit, no such model.
        """
        for number in range(1, self._tries + 1):
            said: float | None = None
            try:
                return parsed(self._send(method, path, data, kind))
            except urllib.error.HTTPError as error:
                reason, said = self._refusal(error), _seconds(error.headers.get("Retry-After"))
                if error.code in _HOPELESS or 300 <= error.code < 400:
                    raise BrokenJudge(f"{self.url}: {reason}") from None
                if "insufficient_quota" in reason:
                    raise BrokenJudge(f"{self.url}: {reason}") from None
                if error.code not in _AGAIN:
                    raise JudgeError(reason) from None
            except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
                # ValueError: an answer that is not what it should be, such as a proxy's page.
                reason = self._clean(f"{type(error).__name__}: {error}")
            if number < self._tries:
                wait = self._pause * 2 ** (number - 1) * random.uniform(0.75, 1.25)  # noqa: S311
                time.sleep(min(_LONGEST_WAIT, wait if said is None else max(said, wait)))
        raise JudgeError(f"{self._tries} times without an answer, last: {reason}")

    def _send(self, method: str, path: str, data: bytes | None, kind: str) -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", data, method=method)  # noqa: S310
        request.add_header("Content-Type", kind)
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        until = time.monotonic() + self._timeout
        with self._open(request, timeout=self._timeout) as response:
            content = b""
            # In pieces: a server that sends a byte now and then never runs into the time limit.
            while piece := response.read1(1 << 16):
                content += piece
                if time.monotonic() > until:
                    raise TimeoutError(f"no whole answer in {self._timeout:g} s")
                if len(content) > _LARGEST:
                    raise ValueError(f"an answer of more than {_LARGEST} bytes")
            # What an endpoint sends back is stored, and some echo requests.
            return content.replace(self._key.encode(), b"***") if self._key else content

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        try:
            body = error.read(4096).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            body = ""
        return self._clean(f"HTTP {error.code}: {body}")

    def _clean(self, text: str) -> str:
        """Short, and without the key, which some endpoints repeat in their errors."""
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:_SHOWN]


class ChatJudge:
    """A chat model behind an endpoint.

    Args:
      model: its name there.
      endpoint: where.
      options: fields of each request, over the defaults; None removes a field.
    """

    def __init__(
        self, model: str, endpoint: Endpoint, options: Mapping[str, Any] | None = None
    ) -> None:
        self.model, self.endpoint = model, endpoint
        self._options = {"temperature": 0, "max_tokens": 64, **(options or {})}
        for name in ("model", "messages", "stream", "n"):
            if name in self._options:
                raise ValueError(f"--request: {name} is not for you to set")
        if endpoint.holds_key(json.dumps(self._options)):
            raise ValueError(
                f"--request holds the key, and is written into results: {KEY} is enough"
            )

    def body(self, job: Job) -> dict[str, Any]:
        """What is sent for a job."""
        options = {name: value for name, value in self._options.items() if value is not None}
        return {"model": self.model, **options, "messages": messages(job)}

    def ask(self, job: Job) -> Reply:
        """See `Judge.ask`."""
        body = json.dumps(self.body(job)).encode()
        path = "/chat/completions"

        def parsed(content: bytes) -> Reply:
            return reply_of(json.loads(content))

        return self.endpoint.request("POST", path, body, "application/json", parsed)

    def describe(self) -> dict[str, Any]:
        """See `Judge.describe`."""
        return {
            "id": f"openai:{self.model}",
            "url": self.endpoint.url,
            "request": dict(self._options),
        }


def reply_of(completion: Any) -> Reply:
    """The reply in a chat completion; raises ValueError for anything else."""
    try:
        text = completion["choices"][0]["message"]["content"]
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError("the answer is no chat completion") from error
    if text is not None and not isinstance(text, str):
        raise ValueError("the answer's content is no text")
    usage = completion.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    tokens = (counts.get("prompt_tokens"), counts.get("completion_tokens"))
    model = completion.get("model")
    return Reply(
        text,
        model if isinstance(model, str) else None,
        tokens if all(type(count) is int for count in tokens) else None,
    )


def _seconds(text: str | None) -> float | None:
    """Of a Retry-After header in seconds; its other form, a date, is not worth reading."""
    try:
        return max(0.0, float(text)) if text is not None else None
    except ValueError:
        return None
