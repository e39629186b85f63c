"""A fake model hub: a real process that speaks as much of the hub's protocol as a pull needs.

    python -m tests.fakes.hub FOLDER

Serves the files below FOLDER/owner/name and prints its address. Every request is in GET /log; POST
/knobs with a JSON object changes how it behaves from then on:

  token          the bearer token without which everything is 401
  gated          true: every file of every repository is 403, gated
  break_after    a large file's connection is closed after so many bytes
  stall_after    a large file's connection sends so many bytes, then nothing
  wrong          true: the content of large files is not what the listing promised
  no_ranges      true: Range is ignored, the answer is 200 from the beginning
  cdn            true: large files are redirected to another host name
  error          a status that every request gets
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
LARGE = (".safetensors", ".gguf")


class Server(ThreadingHTTPServer):
    """Holds the folder, the knobs and the log."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.knobs: dict[str, Any] = {}
        self.log: list[dict[str, Any]] = []
        self.release = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is not worth a traceback."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """The log is in /log."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.knobs = json.loads(body)
        self.server.release.set()
        self.server.release = threading.Event()
        self._json({})

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/log":
            self._json(self.server.log)
            return
        auth = self.headers.get("authorization")
        self.server.log.append(
            {
                "method": self.command,
                "path": path,
                "range": self.headers.get("range"),
                "auth": auth,
                "host": self.headers["host"],
            }
        )
        knobs = self.server.knobs
        token = knobs.get("token")
        if "error" in knobs:
            self._fail(knobs["error"], "")
        elif token and auth != f"Bearer {token}" and not path.startswith("/cdn/"):
            self._fail(401, "RepoNotFound")
        elif path.startswith("/api/models/"):
            self._info(path.removeprefix("/api/models/"))
        else:
            self._file(path)

    def _info(self, name: str) -> None:
        owner_name = "/".join(name.split("/")[:2])
        folder = self.server.folder / owner_name
        if not folder.is_dir():
            self._fail(404, "RepoNotFound")
            return
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = []
        for path in files:
            entry: dict[str, Any] = {
                "rfilename": str(path.relative_to(folder)),
                "size": path.stat().st_size,
                "blobId": "b" * 40,
            }
            if path.suffix in LARGE:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": entry["size"], "pointerSize": 130}
            siblings.append(entry)
        self._json({"id": owner_name, "modelId": owner_name, "sha": COMMIT, "siblings": siblings})

    def _file(self, path: str) -> None:
        knobs, cdn = self.server.knobs, path.startswith("/cdn/")
        owner, name, _, _, file = path.removeprefix("/cdn").strip("/").split("/", 4)
        found = self.server.folder / owner / name / file
        if not found.is_file():
            code = "EntryNotFound" if found.parent.is_dir() else "RepoNotFound"
            self._fail(404, code)
            return
        if knobs.get("gated"):
            self._fail(403, "GatedRepo")
            return
        data = found.read_bytes()
        large = found.suffix in LARGE
        if knobs.get("cdn") and large and not cdn:
            place = f"http://localhost:{self.server.server_port}/cdn{path}"
            self._head(302, data, {"Location": place, "Content-Length": "0"})
            return
        start, status = 0, 200
        wanted = self.headers.get("range")
        if wanted and not knobs.get("no_ranges"):
            start, status = int(wanted.removeprefix("bytes=").split("-")[0]), 206
        body = data[start:]
        if large and knobs.get("wrong"):
            body = bytes(len(body))[:-1] + b"!"
        self._head(status, data, {"Content-Length": str(len(body))})
        if self.command == "GET":
            self._send(body, large)

    def _send(self, body: bytes, large: bool) -> None:
        knobs = self.server.knobs
        for knob in ("break_after", "stall_after"):
            if large and knob in knobs and len(body) > knobs[knob]:
                self.wfile.write(body[: knobs[knob]])
                self.wfile.flush()
                if knob == "stall_after":
                    self.server.release.wait(60)
                self.close_connection = True
                return
        self.wfile.write(body)

    def _head(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        digest = hashlib.sha256(data).hexdigest()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Linked-Etag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.end_headers()

    def _fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, value: object) -> None:
        raw = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def main() -> None:
    """Serve until killed."""
    server = Server(Path(sys.argv[1]))
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
