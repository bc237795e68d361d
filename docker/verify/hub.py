"""A stand-in for the Hub with one repository: the routes and headers that huggingface_hub reads.

hub.py FILE [PORT [SECONDS]]: the repository is someone/vim, FILE is all that it holds, and sending
it takes so long.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT = int(sys.argv[2]) if len(sys.argv) > 2 else 8080
SECONDS = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
REPO, FILE, COMMIT = "someone/vim", Path(sys.argv[1]).name, "0" * 39 + "1"
JSON = {"Content-Type": "application/json"}
CONTENT = Path(sys.argv[1]).read_bytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LFS = {"oid": SHA256, "size": len(CONTENT), "pointerSize": 130}
INFO = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": FILE}]}
TREE = [{"type": "file", "path": FILE, "oid": COMMIT, "size": len(CONTENT), "lfs": LFS}]


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        if self.path in (f"/{REPO}/resolve/{at}/{FILE}" for at in (COMMIT, "main")):
            self._answer(200, CONTENT, {"ETag": f'"{SHA256}"', "X-Repo-Commit": COMMIT})
        elif self.path.startswith(f"/api/models/{REPO}/revision/"):
            self._answer(200, json.dumps(INFO).encode(), JSON)
        elif self.path.startswith(f"/api/models/{REPO}/tree/{COMMIT}"):
            self._answer(200, json.dumps(TREE).encode(), JSON)
        else:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_GET = do_HEAD

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        parts = 10 if body is CONTENT and SECONDS else 1
        step = -(-len(body) // parts) or 1
        for begin in range(0, len(body) if self.command == "GET" else 0, step):
            time.sleep(SECONDS / 10 if parts > 1 else 0)
            self.wfile.write(body[begin : begin + step])


ThreadingHTTPServer(("", PORT), Hub).serve_forever()
