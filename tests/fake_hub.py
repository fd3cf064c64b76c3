"""A model hub of our own on the loopback interface, with one model: what Hugging Face's answers."""

import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = "team/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves the files of a folder as `team/tiny`."""

    def __init__(self, folder):
        self.folder = folder
        self.slow_seconds = 0.0
        """Before the weights are served."""
        self.cuts = 0
        """How often they break off in the middle."""
        self.fetched = []

    @contextmanager
    def running(self):
        """Its address."""
        handler = type("Handler", (_Handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_words):
        """Say nothing."""

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, *, with_body):
        path = self.path.partition("?")[0]
        listing = f"/api/models/{NAME}"
        if path in (listing, f"{listing}/revision/main"):
            self._send_json({"id": NAME, "sha": COMMIT, "siblings": []})
        elif re.fullmatch(f"{listing}/tree/[^/]+", path):
            self._send_json([self._entry(file) for file in sorted(self.hub.folder.iterdir())])
        elif match := re.fullmatch(f"/{NAME}/resolve/[^/]+/(.+)", path):
            self._send_file(self.hub.folder / match[1], with_body)
        else:
            self._say_there_is_none()

    def _entry(self, file):
        oid = hashlib.sha1(file.read_bytes()).hexdigest()
        return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": oid}

    def _send_json(self, value):
        body = json.dumps(value).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": len(body)})
        self.wfile.write(body)

    def _send_file(self, file, with_body):
        if not file.is_file():
            self._say_there_is_none()
            return
        content = file.read_bytes()
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(first[1]) if first else 0
        part = content[begin:]
        headers = {
            "ETag": f'"{self._entry(file)["oid"]}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
            "Content-Length": len(part),
        }
        if first:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self._head(206 if first else 200, headers)
        if not with_body:
            return
        self.hub.fetched.append(file.name)
        if file.suffix == ".safetensors":
            time.sleep(self.hub.slow_seconds)
            if self.hub.cuts:
                self.hub.cuts -= 1
                part = part[: len(part) // 2]
        self.wfile.write(part)

    def _say_there_is_none(self):
        self._head(404, {"X-Error-Code": "EntryNotFound", "Content-Length": 0})

    def _head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
