"""What a browser says to the page of `codecvit llava web`, in plain HTTP."""

from __future__ import annotations

import http.client
import json
import uuid
from urllib.parse import urlsplit


class WebClient:
    """One tab. Functions of the page are told by their names."""

    def __init__(self, address, host=None):
        parts = urlsplit(address)
        self.host, self.port = parts.hostname, parts.port
        self.headers = {"Host": host} if host else {}
        self.session = uuid.uuid4().hex[:10]

    def request(self, method, path, body=None, headers=None):
        """(status, headers, body); the path goes out as it stands."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(method, path, body, {**self.headers, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def get(self, path):
        status, _, body = self.request("GET", path)
        return status, body

    def upload(self, name, content):
        """(status, path on the server or the server's words)."""
        mark = uuid.uuid4().hex
        head = (
            f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + content + f"\r\n--{mark}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        status, _, told = self.request("POST", "/gradio_api/upload", body, kind)
        return status, json.loads(told)[0] if status == 200 else told.decode()

    def join(self, name, *data):
        """Asks for a function; (status, answer)."""
        status, body = self.get("/config")
        assert status == 200
        config = json.loads(body)
        number = next(d["id"] for d in config["dependencies"] if d["api_name"] == name)
        asked = {"data": data, "fn_index": number, "session_hash": self.session}
        asked |= {"event_data": None, "trigger_id": None}
        status, _, told = self.request(
            "POST",
            "/gradio_api/queue/join",
            json.dumps(asked),
            {"Content-Type": "application/json"},
        )
        return status, told.decode()

    def events(self):
        """What comes of what was joined, until all of it is done."""
        status, body = self.get(f"/gradio_api/queue/data?session_hash={self.session}")
        assert status == 200, body
        lines = body.decode().splitlines()
        return [json.loads(line[5:]) for line in lines if line.startswith("data:")]

    def call(self, name, *data):
        """Joins and waits; (whether it worked, outputs as they came)."""
        status, told = self.join(name, *data)
        assert status == 200, told
        events = self.events()
        done = next(e for e in events if e["msg"] == "process_completed")
        outputs = [
            e["output"]["data"]
            for e in events
            if e["msg"] in ("process_generating", "process_completed") and "data" in e["output"]
        ]
        return done["success"], outputs if done["success"] else done["output"]

    def drop(self, name, content):
        """Uploads a file and has it read."""
        status, path = self.upload(name, content)
        assert status == 200, path
        file = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
        return self.call("drop", file)
