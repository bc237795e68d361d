"""A real Chromium: a page of another origin, and a name that leads here without being ours."""

from __future__ import annotations

import http.server
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path

import httpx
import pytest

from security.processes import server_process

_PAGE = """<body><script>
const url = "http://localhost:PORT";
fetch(url + "/models/arithmetic/pin", {method: "POST", mode: "no-cors"})
  .then(() => fetch(url + "/models")).then(answer => answer.text())
  .catch(error => "blocked").then(text => document.body.textContent = text);
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_s_pages_of_other_origins(tmp_path: Path) -> None:
    def shown(url: str) -> str:
        rules = "--host-resolver-rules=MAP evil.test 127.0.0.1"
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", rules]
        command += [f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=4000"]
        done = subprocess.run([*command, "--dump-dom", url], capture_output=True, timeout=120)
        return done.stdout.decode()

    with server_process(tmp_path, "--model-control") as server:
        assert "--allowed-hosts" in shown(f"http://evil.test:{server.port}/models")
        (tmp_path / "page.html").write_text(_PAGE.replace("PORT", str(server.port)))
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
            thread = threading.Thread(target=other.serve_forever)
            thread.start()
            assert "blocked" in shown(f"http://127.0.0.1:{other.server_address[1]}/page.html")
            other.shutdown()
            thread.join()
        (model,) = httpx.get(f"{server.url}/models").json()["models"]
        assert model["pinned"] is False
        lines = [line for line in server.log.read_text().splitlines() if "/pin" in line]
        assert len(lines) == 1
        assert '"status": 403' in lines[0]
