"""The metrics: what is counted, under which names, and that documentation and dashboard follow."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import promql_parser
import pytest
from generate_docs import ROOT
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict
from prometheus_client.parser import text_string_to_metric_families as families

from support.serving import NPY, npy, running
from vim_embed.batching.request import BatchKey, Embedded
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import ModelStatus, Outputs, Staged
from vim_embed.http.app import create_app
from vim_embed.observability.metrics import REFUSALS, Metrics
from vim_embed.serving.service import build_service
from vim_embed.settings import Settings
from vim_embed.types.model_info import EmbedOptions

OWN = "vim_embed_"
PIXELS = np.arange(5 * 3 * 8 * 8, dtype=np.float32).reshape(5, 3, 8, 8)
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class GatedEngine(ArithmeticEngine):
    """Runs once it is let, and has a device's memory to tell of."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.go = threading.Event()
        self.go.set()

    def memory(self) -> Mapping[tuple[str, str], int]:
        return {("cuda:0", "allocated"): 1000, ("cuda:0", "reserved"): 2000}

    def run(self, staged: Staged) -> Outputs:
        assert self.go.wait(30)
        time.sleep(self.seconds)
        return super().run(staged)


def scrape(url: str) -> Samples:
    text = httpx.get(f"{url}/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[OWN + name, tuple(sorted(labels.items()))]


def post(url: str, pixels: Any = PIXELS, **query: str) -> httpx.Response:
    return httpx.post(f"{url}/embed", content=npy(pixels), headers=NPY, params=query, timeout=30)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_parts_of_requests() -> None:
    seconds = 0.05
    with running(create_app(Settings(), GatedEngine(seconds))) as url:
        begin = time.monotonic()
        for _ in range(3):
            assert post(url).status_code == 200
        body = {"shape": PIXELS.shape, "datatype": "FP32", "name": "pixel_values"}
        asked = {"inputs": [{**body, "data": PIXELS.reshape(-1).tolist()}]}
        v2 = httpx.post(f"{url}/v2/models/arithmetic/infer", json=asked)
        assert v2.status_code == 200
        elapsed = time.monotonic() - begin
        seen = scrape(url)
    model = {"model": "arithmetic"}
    assert value(seen, "rows_total", **model) == 20
    assert value(seen, "batches_total", **model) == 4
    assert value(seen, "batch_rows_sum", **model) == 20
    for name in ("embed", "queue", "compute", "overhead", "stage", "forward"):
        assert value(seen, f"{name}_seconds_count", **model) == 4
    compute = value(seen, "compute_seconds_sum", **model)
    assert 4 * seconds <= value(seen, "forward_seconds_sum", **model) == pytest.approx(compute)
    whole = value(seen, "embed_seconds_sum", **model)
    parts = [value(seen, f"{name}_seconds_sum", **model) for name in ("queue", "overhead")]
    assert all(part > 0 for part in parts)
    assert sum(parts) + compute == pytest.approx(whole)
    assert value(seen, "requests_total", route="/embed", status="200", code="") == 3
    assert 3 * seconds <= value(seen, "request_seconds_sum", route="/embed") <= elapsed
    assert value(seen, "model_ready", **model) == 1
    info = {"kind": "arithmetic", "dtype": "float32", "device": "cpu", "backend": "numpy"}
    assert value(seen, "model_info", **model, **info, digest="sha256:0", random="false") == 1


def test_what_waits_and_what_is_refused() -> None:
    engine = GatedEngine()
    with running(create_app(Settings(queue_rows=5, max_rows=8), engine)) as url:
        engine.go.clear()
        assert all(value(scrape(url), "refusals_total", reason=reason) == 0 for reason in REFUSALS)
        threads = [threading.Thread(target=post, args=(url,)) for _ in range(2)]
        threads[0].start()
        staged = (OWN + "stage_seconds_count", (("model", "arithmetic"),))
        wait_until(lambda: staged in scrape(url))
        threads[1].start()
        wait_until(lambda: value(scrape(url), "waiting_rows") == 5)
        assert value(scrape(url), "waiting_bytes") == PIXELS.nbytes
        # The queue holds 5 rows, and all of them are taken.
        assert post(url).status_code == 429
        assert post(url, np.zeros((9, 3, 8, 8), np.float32)).status_code == 413
        assert post(url, np.full((1, 3, 8, 8), np.nan, np.float32)).status_code == 422
        engine.go.set()
        for thread in threads:
            thread.join()
        seen = scrape(url)
    assert value(seen, "waiting_rows") == value(seen, "waiting_bytes") == 0
    assert value(seen, "refusals_total", reason="queue_full") == 1
    assert value(seen, "refusals_total", reason="payload_too_large") == 1
    assert value(seen, "refusals_total", reason="unauthorized") == 0
    for reason in ("queue_full", "invalid_input"):
        assert value(seen, "failures_total", model="arithmetic", reason=reason) == 1
    assert value(seen, "rows_total", model="arithmetic") == 10


def test_keys_and_readiness() -> None:
    class Loading(ArithmeticEngine):
        gate = threading.Event()

        def load(self) -> None:
            assert self.gate.wait(30)
            super().load()

        def status(self) -> Mapping[str, ModelStatus]:
            found = super().status()
            if self.gate.is_set():
                return found
            return {
                name: replace(status, state="loading", info=None) for name, status in found.items()
            }

    with running(create_app(Settings(api_keys="k"), Loading()), wait=False) as url:
        assert post(url).status_code == 401
        key = {"Authorization": "Bearer k"}
        early = httpx.post(f"{url}/embed", content=npy(PIXELS), headers={**NPY, **key})
        assert early.status_code == 503
        loading = httpx.get(f"{url}/metrics", headers=key).text
        Loading.gate.set()
        wait_until(lambda: httpx.get(f"{url}/health/ready").status_code == 200)
        loaded = httpx.get(f"{url}/metrics", headers=key).text
    assert 'vim_embed_refusals_total{reason="unauthorized"} 1.0' in loading
    assert 'vim_embed_refusals_total{reason="not_ready"} 1.0' in loading
    assert 'vim_embed_model_ready{model="arithmetic"} 0.0' in loading
    assert "vim_embed_model_info{" not in loading
    assert 'vim_embed_model_ready{model="arithmetic"} 1.0' in loaded
    assert "vim_embed_model_info{" in loaded


def test_gpu_memory_is_absent_on_a_cpu() -> None:
    assert "vim_embed_gpu_memory_bytes{" not in text_of(metrics_of(ArithmeticEngine()))
    text = text_of(metrics_of(GatedEngine()))
    assert 'vim_embed_gpu_memory_bytes{device="cuda:0",state="allocated"} 1000.0' in text
    assert 'vim_embed_gpu_memory_bytes{device="cuda:0",state="reserved"} 2000.0' in text


def test_the_torch_engine_s_memory_on_a_cpu() -> None:
    import torch

    from vim_embed.engines.torch_engine import EngineOptions, TorchEngine

    assert TorchEngine([], EngineOptions(device=torch.device("cpu"))).memory() == {}


# names, documentation, dashboard


def metrics_of(engine: ArithmeticEngine) -> Metrics:
    return build_service(Settings(), engine).metrics


def text_of(metrics: Metrics) -> str:
    return metrics.text().decode()


def test_what_alerts_look_for_begins_at_0() -> None:
    """A count that begins with the first failure never rises: `increase` does not see it."""
    metrics = Metrics()
    metrics.expect(["m"], ["cuda:0", "cuda:1"])
    metrics.checked("m", True)
    failures = samples_of(metrics, "vim_embed_worker_failures_total")
    causes = ("exception", "hang", "thread", "check")
    assert failures == {(d, c): 0 for d in ("cuda:0", "cuda:1") for c in causes}
    checks = samples_of(metrics, "vim_embed_self_checks_total")
    assert checks == {("m", "ok"): 1, ("m", "failed"): 0}
    metrics.worker_failed("cuda:1", "hang")
    metrics.checked("m", False)
    assert samples_of(metrics, "vim_embed_worker_failures_total")["cuda:1", "hang"] == 1
    assert samples_of(metrics, "vim_embed_self_checks_total")["m", "failed"] == 1


def samples_of(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """By the values of their labels."""
    families = metrics.registry.collect()
    samples = [one for family in families for one in family.samples if one.name == name]
    return {tuple(one.labels.values()): one.value for one in samples}


def everything() -> Metrics:
    """Metrics that have a sample of every kind."""
    engine = GatedEngine()
    engine.load()
    metrics = metrics_of(engine)
    key = BatchKey("m", EmbedOptions(), (3, 8, 8), "uint8")
    metrics.staged(key, 0.1)
    metrics.batch(key, 4, 2, 0.1)
    metrics.dropped(key, 1, "cancelled")
    metrics.answered("/embed", 429, "queue_full", 0.1)
    metrics.embedded("m", Embedded({}, 0.1, 0.2), 0.5)
    metrics.failed("m", "queue_full")
    metrics.worker_failed("cpu", "hang")
    metrics.checked("m", True)
    metrics.expect(["m"], ["cpu"])
    metrics.connection_refused("too_many_connections")
    return metrics


def described() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Type and labels of every metric that is exposed, by name."""
    found = {}
    for family in everything().registry.collect():
        if family.name.startswith(OWN):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found[name] = (family.type, tuple(k for k in family.samples[0].labels if k != "le"))
    return found


def test_the_table_of_the_documentation_is_the_code_s() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    header = "| metric | type | labels | meaning |"
    rows = text[text.index(header) :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    documented = {
        name.strip("`"): (kind, tuple(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, _ in cells
    }
    assert documented == {name: (kind, labels) for name, (kind, labels) in described().items()}
    reasons = next(meaning for name, _, _, meaning in cells if "refusals" in name)
    assert tuple(re.findall(r"`(\w+)`", reasons)) == REFUSALS


def test_names_follow_the_conventions() -> None:
    metrics = everything()
    text = openmetrics(metrics.registry).decode()  # type: ignore[no-untyped-call]
    assert len(list(strict(text))) > 15  # type: ignore[no-untyped-call]
    for family in metrics.registry.collect():
        assert family.documentation
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_rows"))
        assert not re.search(r"_(ms|us|milli\w*|mb|percent)(_|$)", family.name)


def queries(folder_text: str) -> list[str]:
    panels = json.loads(folder_text)["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_the_dashboard_shows_every_metric() -> None:
    text = (ROOT / "docker/grafana/dashboards/vim-embed.json").read_text()
    asked = " ".join(queries(text))
    for name in described():
        assert re.search(rf"\b{name}(_bucket|_sum|_count)?\b", asked), f"no panel shows {name}"
    documented = (ROOT / "docs" / "metrics.md").read_text().split("| question | expression |")[1]
    expressions = re.findall(r"\| `(.+)` \|$", documented.split("\n\n")[0], re.MULTILINE)
    assert len(expressions) == 7
    for expression in (*queries(text), *expressions):
        promql_parser.parse(expression)
        assert set(re.findall(r"vim_embed_\w+?(?=_bucket|_sum|_count|\b)", expression)) <= set(
            described()
        )
    panels = json.loads(text)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    corners = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(corners) == len(panels)


def test_what_is_read_back_is_what_was_counted() -> None:
    totals = everything().totals("m")
    assert (totals.requests, totals.failures, totals.rows, totals.batches) == (1, 1, 4, 1)
    assert (totals.request_seconds, totals.queue_seconds) == (0.5, 0.1)
    assert (totals.compute_seconds, totals.stage_seconds) == (0.2, 0.1)
    assert everything().totals("other").requests == 0
