"""A stand-in for the Hub with one repository: the routes and headers that huggingface_hub reads.

hub.py FOLDER: serves FOLDER/vim_micro.pth as the released file of hustvl/Vim-tiny-midclstok.
"""

from __future__ import annotations

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPO, FILE, COMMIT = "hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth", "0" * 39 + "1"
CONTENT = (Path(sys.argv[1]) / "vim_micro.pth").read_bytes()
INFO = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": FILE}]}


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        if self.path in (f"/{REPO}/resolve/{at}/{FILE}" for at in (COMMIT, "main")):
            etag = hashlib.sha256(CONTENT).hexdigest()
            self._answer(200, CONTENT, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        elif self.path.startswith(f"/api/models/{REPO}/revision/"):
            self._answer(200, json.dumps(INFO).encode(), {"Content-Type": "application/json"})
        else:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_GET = do_HEAD

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


ThreadingHTTPServer(("", 8080), Hub).serve_forever()
