"""A cluster that changes under traffic: new weights, more replicas; and `serve run` itself."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from support.cluster_parts import (
    OBJECT_STORE,
    arithmetic_embeddings,
    first_edition,
    free_port,
    prepare_environment,
    second_edition,
    slow,
    states,
)
from support.fixtures_vim import DATA
from support.waiting import until
from vim_embed.settings import Settings
from vim_embed_client import Client

pytest.importorskip("ray", reason='needs the extra: pip install "vim-embed[ray]"')
pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SETTINGS = Settings(models=("one=unused",))
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 3, 8, 8), dtype=np.uint8)


def deploy(make_engines: Any, **options: Any) -> None:
    from ray import serve

    from vim_embed.cluster.deployment import application
    from vim_embed.cluster.settings import ClusterSettings

    serve.run(application(SETTINGS, ClusterSettings(health_period=0.5, **options), make_engines))


def test_an_update_loses_nothing_and_mixes_nothing(serve_url: str) -> None:
    """Every answer's numbers are those of the weights that it names, before, during and after."""
    deploy(first_edition, min_replicas=2, max_replicas=2)
    until(lambda: set(states(serve_url).values()) == {"ready"})
    stop, seen, wrong = threading.Event(), Counter[str](), []

    def send() -> None:
        with Client(serve_url, max_retries=0) as client:
            while not stop.is_set():
                answer = client.embed(PIXELS, model="one")
                digest = answer.provenance.weights_digest
                edition = int(digest.removeprefix("sha256:"))
                if not np.array_equal(answer.embeddings, arithmetic_embeddings(PIXELS) + edition):
                    wrong.append(digest)
                seen[digest] += 1

    with ThreadPoolExecutor(6) as pool:
        senders = [pool.submit(send) for _ in range(6)]
        try:
            until(lambda: seen["sha256:1"] > 50)
            deploy(second_edition, min_replicas=2, max_replicas=2)
            until(lambda: seen["sha256:2"] > 50)
        finally:
            stop.set()
        for sender in senders:
            sender.result()  # raises what a request failed with
    print(dict(seen))
    assert wrong == []


def test_the_queue_s_length_brings_replicas_and_takes_them(serve_url: str) -> None:
    from ray import serve

    def replicas() -> int:
        found = serve.status().applications["default"].deployments["one"].replica_states
        return int(found.get("RUNNING", 0))

    deploy(
        slow, min_replicas=1, max_replicas=3, target_requests=2, upscale_delay=1, downscale_delay=2
    )
    until(lambda: replicas() == 1 and set(states(serve_url).values()) == {"ready"})
    end = time.monotonic() + 60

    def send() -> None:
        with Client(serve_url, max_retries=8) as client:
            while replicas() < 2 and time.monotonic() < end:
                found = client.embed(PIXELS, model="one").embeddings
                np.testing.assert_array_equal(found, arithmetic_embeddings(PIXELS))

    with ThreadPoolExecutor(12) as pool:
        for sender in [pool.submit(send) for _ in range(12)]:
            sender.result()
    assert replicas() >= 2
    until(lambda: replicas() == 1, 90)


@contextmanager
def serve_run(tmp_path: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`serve run` of a config file with a real Vim, as a user starts it."""
    prepare_environment()
    config = tmp_path / "serve.yaml"
    config.write_text(
        f"http_options: {{host: 127.0.0.1, port: {port}}}\n"
        "applications:\n"
        "  - name: vim-embed\n"
        "    route_prefix: /\n"
        "    import_path: vim_embed.cluster:app\n"
        f"    args: {{models: 'micro={DATA / 'vim_micro.pth'}'}}\n"
    )
    environment = {
        **os.environ,
        "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(OBJECT_STORE),
        "VIM_EMBED_THREADS": "1",
    }
    command = [str(Path(sys.executable).parent / "serve"), "run", str(config)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.timeout(400)
def test_serve_run_of_a_config_file_gives_what_the_model_gives(tmp_path: Path) -> None:
    from vim_embed import load_model

    port = free_port()
    pixels = np.random.default_rng(1).integers(0, 256, (9, 3, 64, 64), dtype=np.uint8)
    with serve_run(tmp_path, port) as process:
        url = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                return httpx.get(f"{url}/health/ready").status_code == 200
            except httpx.TransportError:
                return False

        until(ready, 240)
        with Client(url) as client:
            answer = client.embed(pixels, model="micro")
    model = load_model("micro", DATA / "vim_micro.pth", device="cpu")
    np.testing.assert_allclose(answer.embeddings, model.embed(pixels), rtol=1e-5, atol=1e-6)
    assert answer.provenance.weights_digest == model.info.weights.digest
