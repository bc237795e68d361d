"""The service through a real Ray Serve on one node, beside the stand-alone one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.cluster_parts import DEADLY, arithmetic_embeddings, mixed, states
from support.serving import NPY, from_npy, npy, running
from support.waiting import until
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client import Client, QueueFullError
from vim_embed_client.cli.main import run

pytest.importorskip("ray", reason='needs the extra: pip install "vim-embed[ray]"')
pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

NAMES = ("quick", "slow", "shared", "mortal", "left")
SETTINGS = Settings(
    models=tuple(f"{name}=unused" for name in NAMES), queue_rows=64, max_rows=40, client_share=1.0
)
PIXELS = np.random.default_rng(0).integers(0, 250, (32, 3, 8, 8), dtype=np.uint8)
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def cluster(serve_url: str) -> str:
    from ray import serve

    from vim_embed.cluster.deployment import application
    from vim_embed.cluster.settings import ClusterSettings

    options = ClusterSettings(cpus=1, health_period=0.5)
    serve.run(application(SETTINGS, options, mixed))
    until(lambda: set(states(serve_url).values()) == {"ready"})
    return serve_url


@pytest.fixture(scope="module")
def alone() -> Iterator[str]:
    with running(create_app(SETTINGS, ArithmeticEngine(NAMES))) as url:
        yield url


def test_answers_are_those_of_the_engine(cluster: str) -> None:
    with Client(cluster) as client:
        answer = client.embed(PIXELS, model="quick")
        layers = client.embed_layers(PIXELS, model="quick", granularity="blocks")
    np.testing.assert_array_equal(answer.embeddings, arithmetic_embeddings(PIXELS))
    assert answer.provenance.model == "quick"
    assert answer.provenance.backend == "numpy"
    np.testing.assert_array_equal(layers.layers["first"], -arithmetic_embeddings(PIXELS))


QUESTIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/embed?model=quick", {"content": npy(PIXELS), "headers": NPY}),
    ("POST", "/embed?model=quick", {"json": {"inputs": PIXELS[:1].tolist(), "dtype": "uint8"}}),
    ("POST", "/embed?model=nobody", {"content": npy(PIXELS), "headers": NPY}),
    ("POST", "/embed?model=quick", {"content": b"no npy", "headers": NPY}),
    ("POST", "/embed?model=quick", {"content": b"x", "headers": {"Content-Type": "text/plain"}}),
    ("POST", "/embed?pooling=most", {"content": npy(PIXELS), "headers": NPY}),
    ("POST", "/embed?whatever=1", {"content": npy(PIXELS), "headers": NPY}),
    ("POST", "/embed", {"content": npy(np.zeros((41, 3, 8, 8), np.uint8)), "headers": NPY}),
    ("POST", "/embed", {"content": npy(np.zeros((2, 4, 8, 8), np.uint8)), "headers": NPY}),
    ("POST", "/embed", {"content": npy(np.full((1, 3, 8, 8), np.nan)), "headers": NPY}),
    ("POST", "/embed", {"content": npy(PIXELS), "headers": {**NPY, "Accept": "text/html"}}),
    ("GET", "/embed", {}),
    ("GET", "/nowhere", {}),
    ("GET", "/models", {}),
    ("GET", "/models/slow", {}),
    ("GET", "/models/nobody", {}),
    ("GET", "/models/quick/layers", {}),
    ("GET", "/models/quick/layers?granularity=none", {}),
    ("POST", "/models/quick/check", {}),
    ("GET", "/health/live", {}),
    ("GET", "/health/ready", {}),
    ("GET", "/openapi.json", {}),
]


@pytest.mark.parametrize(("method", "path", "rest"), QUESTIONS)
def test_the_same_routes_and_shapes_as_alone(
    cluster: str, alone: str, method: str, path: str, rest: dict[str, Any]
) -> None:
    headers = {**rest.get("headers", {}), "X-Request-ID": "the-same"}
    one, other = (
        httpx.request(method, url + path, **{**rest, "headers": headers})
        for url in (cluster, alone)
    )
    assert one.status_code == other.status_code
    assert one.content == other.content
    varying = {"date", "server", "server-timing", "connection"}
    assert {k: v for k, v in one.headers.items() if k not in varying} == {
        k: v for k, v in other.headers.items() if k not in varying
    }


def test_an_id_is_made_where_none_came_and_is_in_the_error(cluster: str) -> None:
    answer = httpx.post(f"{cluster}/embed?model=nobody", content=npy(PIXELS), headers=NPY)
    (request_id,) = answer.headers.get_list("x-request-id")
    assert len(request_id) >= 32
    assert answer.json()["error"]["request_id"] == request_id


def test_a_full_queue_refuses_with_a_time_to_retry(cluster: str) -> None:
    answers: list[httpx.Response] = []

    def send() -> None:
        answers.append(
            httpx.post(f"{cluster}/embed?model=slow", content=npy(PIXELS), headers=NPY, timeout=60)
        )

    threads = [threading.Thread(target=send) for _ in range(16)]  # 512 rows for a queue of 64
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if answer.status_code == 429]
    served = [answer for answer in answers if answer.status_code == 200]
    assert len(refused) + len(served) == 16
    assert refused
    assert served
    assert refused[0].json()["error"]["code"] == "queue_full"
    assert 1 <= int(refused[0].headers["retry-after"]) <= 60
    for answer in served:
        np.testing.assert_array_equal(from_npy(answer.content), arithmetic_embeddings(PIXELS))


def test_the_client_knows_the_refusal(cluster: str) -> None:
    with Client(cluster, max_retries=0) as client, pytest.raises(QueueFullError):
        crowd(client, 24)


def crowd(client: Client, requests: int) -> None:
    """Send at once; raises what the first refused one raised."""
    with ThreadPoolExecutor(requests) as pool:
        list(pool.map(lambda _: client.embed(PIXELS, model="slow"), range(requests)))


def test_a_passed_deadline_is_504(cluster: str) -> None:
    answer = httpx.post(
        f"{cluster}/embed?model=slow&timeout=0.005", content=npy(PIXELS), headers=NPY
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_rows_of_concurrent_requests_share_batches(cluster: str) -> None:
    def one(row: int) -> np.ndarray[Any, Any]:
        with Client(cluster) as client:
            return client.embed(PIXELS[row : row + 1], model="shared").embeddings

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(one, range(32)))
    np.testing.assert_array_equal(np.concatenate(answers), arithmetic_embeddings(PIXELS))
    until(lambda: ray_samples("shared")["rows_total"] >= 32)
    seen = ray_samples("shared")
    assert seen["rows_total"] == 32
    assert seen["batch_rows_count"] <= 16


def ray_samples(model: str) -> dict[str, float]:
    """Our metrics of a model, as Ray's own exporter gives them to Prometheus."""
    import ray

    (node,) = ray.nodes()
    text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}").text
    found = {"rows_total": 0.0, "batch_rows_count": 0.0, "dropped_rows_total": 0.0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("ray_vim_embed_")
            if name in found and sample.labels.get("model") == model:
                assert sample.labels["deployment"] == model
                found[name] = sample.value
    return found


def test_rows_of_a_client_that_left_are_not_computed(cluster: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        url = f"{cluster}/embed?model=left"
        busy = pool.submit(httpx.post, url, content=npy(PIXELS), headers=NPY, timeout=60)
        time.sleep(0.3)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, content=npy(PIXELS[:7]), headers=NPY, timeout=0.3)
        np.testing.assert_array_equal(
            from_npy(busy.result().content), arithmetic_embeddings(PIXELS)
        )
    counts = {"dropped_rows_total": 7, "rows_total": len(PIXELS)}
    until(lambda: counts.items() <= ray_samples("left").items())


def test_a_replica_whose_engine_died_is_replaced(cluster: str) -> None:
    deadly = npy(np.full((1, 3, 8, 8), DEADLY, np.uint8))
    answer = httpx.post(f"{cluster}/embed?model=mortal", content=deadly, headers=NPY, timeout=60)
    assert answer.status_code in (500, 503)
    assert answer.json()["error"]["code"] in ("worker_failed", "internal_error", "not_ready")
    with Client(cluster, max_retries=30) as client:  # until there is another
        again = client.embed(PIXELS, model="mortal").embeddings
        np.testing.assert_array_equal(again, arithmetic_embeddings(PIXELS))
        np.testing.assert_array_equal(
            client.embed(PIXELS, model="quick"), arithmetic_embeddings(PIXELS)
        )


def test_bulk_embedding_works_as_with_one_service(cluster: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS[:20])
    np.save(tmp_path / "b.npy", PIXELS[20:])
    out = tmp_path / "out.parquet"
    arguments = ["embed", str(tmp_path), "-o", str(out), "--url", cluster, "--model", "quick"]
    assert run(arguments) == 0
    table = pq.read_table(out)
    assert [i.rpartition("#")[2] for i in table["id"].to_pylist()] == [
        str(i) for i in (*range(20), *range(12))
    ]
    found = np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_array_equal(found, arithmetic_embeddings(PIXELS))
