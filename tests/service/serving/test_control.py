"""Checks, loading and unloading, and faults on demand, over a real server with real models."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import torch

from support.fixtures_vim import DATA
from support.serving import NPY, from_npy, npy, running
from vim_embed.batching.queue import BatchQueue
from vim_embed.batching.request import EmbedRequest
from vim_embed.engines.torch_engine import EngineOptions, TorchEngine
from vim_embed.errors import Conflict, NotReady, UnknownModel
from vim_embed.http.app import create_app
from vim_embed.models.vim import Vim, VimConfig, init_random
from vim_embed.serving.model_control import ModelControl
from vim_embed.settings import Settings
from vim_embed.types.model_info import EmbedOptions
from vim_embed.weights.catalogue import parse_model

MICRO = f"micro={DATA / 'vim_micro.pth'}"
PLUS = f"plus={DATA / 'vim_micro_stride8.pth'}"
PIXELS = np.random.default_rng(5).integers(0, 256, (6, 3, 64, 64), dtype=np.uint8)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = Settings(
        models=(MICRO, PLUS),
        device="cpu",
        exact=True,
        fault_injection=True,
        model_control=True,
    )
    with running(create_app(settings)) as address:
        yield address


def embed(url: str, model: str = "micro") -> httpx.Response:
    return httpx.post(f"{url}/embed?model={model}", content=npy(PIXELS), headers=NPY, timeout=60)


def arm(url: str, kind: str, **fields: float) -> None:
    answer = httpx.post(f"{url}/faults", json={"kind": kind, **fields})
    assert answer.status_code == 200, answer.text


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def until_ready(url: str) -> None:
    until(lambda: httpx.get(f"{url}/health/ready").status_code == 200)


def until_answered(url: str) -> bytes:
    """The rows, from whichever try succeeds: on a busy machine any forward may count as a hang."""
    answers: list[httpx.Response] = []

    def answered() -> bool:
        answers.append(embed(url))
        assert answers[-1].status_code in (200, 503)
        return answers[-1].status_code == 200

    until(answered)
    return answers[-1].content


def test_a_check_compares_with_the_golden_sample(url: str) -> None:
    answer = httpx.post(f"{url}/models/micro/check").json()
    assert answer["ok"]
    assert answer["state"] == "ready"
    (report,) = answer["reports"]
    assert report["ok"]
    assert report["error"] <= report["tolerance"]
    assert httpx.post(f"{url}/models/none/check").json()["error"]["code"] == "unknown_model"
    metrics = httpx.get(f"{url}/metrics").text
    assert 'vim_embed_self_checks_total{model="micro",result="ok"}' in metrics


def test_weights_that_change_in_memory_are_noticed(url: str) -> None:
    right = embed(url, "plus").content
    settings = Settings(models=(PLUS,), device="cpu", exact=True, check_interval=0.2)
    app = create_app(settings)
    with running(app) as own, torch.inference_mode():
        assert embed(own, "plus").content == right
        (worker,) = app.state.service.queue.workers
        weights = next(worker.engine._models["plus"].module.parameters())
        weights.add_(0.5)
        until(lambda: httpx.get(f"{own}/health/ready").status_code == 503)
        refused = embed(own, "plus")
        assert refused.status_code == 503
        assert "self-check failed: error" in refused.json()["error"]["message"]
        assert httpx.get(f"{own}/models/plus").json()["state"] == "failed"
        weights.sub_(0.5)
        until_ready(own)  # the next idle check finds it sound again
        np.testing.assert_allclose(
            from_npy(embed(own, "plus").content), from_npy(right), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize(
    ("kind", "status"),
    [("exception", 500), ("engine", 503), ("out_of_memory", 200)],
)
def test_faults_on_demand(url: str, kind: str, status: int) -> None:
    right = embed(url).content
    met = httpx.get(f"{url}/faults").json()["met"][kind]
    arm(url, kind)
    answer = embed(url)
    assert answer.status_code == status
    if status == 200:
        assert answer.content == right
    until_ready(url)
    assert embed(url).content == right
    assert httpx.get(f"{url}/faults").json()["met"][kind] == met + 1


@pytest.mark.parametrize(
    ("kind", "line"), [("exception", "requests failed"), ("engine", "worker failed")]
)
def test_the_log_tells_whose_request_met_a_fault(
    url: str, kind: str, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    arm(url, kind)
    headers = NPY | {"X-Request-ID": f"galaxy-{kind}"}
    answer = httpx.post(f"{url}/embed?model=micro", content=npy(PIXELS), headers=headers)
    assert answer.status_code in (500, 503)
    (record,) = (each for each in caplog.records if each.getMessage() == line)
    assert vars(record)["request_ids"] == [f"galaxy-{kind}"]
    until_ready(url)


def test_a_hanging_forward_makes_the_service_not_ready_until_it_is_replaced() -> None:
    settings = Settings(
        models=(MICRO,), device="cpu", exact=True, fault_injection=True, forward_timeout=2
    )
    with running(create_app(settings)) as url, ThreadPoolExecutor(1) as pool:
        right = until_answered(url)
        arm(url, "hang", seconds=600)  # whoever gets past it did not wait for its end
        stuck = pool.submit(embed, url)
        until(lambda: httpx.get(f"{url}/health/ready").json().get("degraded") != {})
        refused = stuck.result()
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "worker_failed"
        assert refused.headers["retry-after"] == "1"
        assert until_answered(url) == right
        until(lambda: httpx.get(f"{url}/health/ready").json().get("degraded") == {})


def test_faults_and_control_exist_only_where_they_are_enabled(micro_url: str) -> None:
    for path in ("faults", "models/micro/unload", "models/micro/pin"):
        answer = httpx.post(f"{micro_url}/{path}", json={"kind": "exit"})
        assert answer.status_code in (404, 405)
    assert httpx.get(f"{micro_url}/faults").status_code == 404


def test_models_come_and_go_while_another_answers(url: str) -> None:
    right, other = embed(url).content, embed(url, "plus").content
    stop, wrong = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            answer = embed(url)
            if answer.status_code != 200 or answer.content != right:
                wrong.append(answer.text)

    thread = threading.Thread(target=ask)
    thread.start()
    for _ in range(3):
        assert httpx.post(f"{url}/models/plus/unload").json()["state"] == "unloaded"
        refused = embed(url, "plus")
        assert refused.status_code == 503
        assert "unloaded" in refused.json()["error"]["message"]
        loaded = httpx.post(f"{url}/models/plus/load", timeout=60)
        assert loaded.json()["state"] == "ready", loaded.text
        assert embed(url, "plus").content == other
    stop.set()
    thread.join(60)
    assert not wrong


def test_a_pinned_model_stays(url: str) -> None:
    assert httpx.post(f"{url}/models/plus/pin").json()["pinned"]
    refused = httpx.post(f"{url}/models/plus/unload")
    assert refused.status_code == 409
    assert "unpin" in refused.json()["error"]["message"]
    assert not httpx.post(f"{url}/models/plus/unpin").json()["pinned"]


@pytest.mark.parametrize(
    "name", ["other=/etc/passwd", "/etc/passwd", "../secret.pth", "org/repo", "none"]
)
def test_requests_reach_no_files(url: str, name: str) -> None:
    answer = httpx.post(f"{url}/models/{name}/load")
    assert answer.status_code == 404
    assert httpx.get(f"{url}/models").json()["models"][2:] == []


def test_only_admins_control_models() -> None:
    settings = Settings(
        models=(MICRO,), device="cpu", model_control=True, api_keys="user", admin_keys="admin"
    )
    user, admin = ({"Authorization": f"Bearer {key}"} for key in ("user", "admin"))
    with running(create_app(settings), wait=False) as url:
        until_ready(url)
        assert httpx.post(f"{url}/models/micro/pin").status_code == 401
        refused = httpx.post(f"{url}/models/micro/pin", headers=user)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        assert httpx.post(f"{url}/models/micro/pin", headers=admin).status_code == 200
        assert httpx.get(f"{url}/models/micro", headers=user).json()["pinned"]


def test_an_unloaded_model_s_memory_comes_back(tmp_path: Path) -> None:
    wide = Vim(VimConfig(dim=1024, depth=2, image_size=64))
    init_random(wide, 0)
    weights = sum(4 * each.numel() for each in wide.parameters())
    assert weights > 50e6
    torch.save({"model": wide.state_dict()}, tmp_path / "wide.pth")
    del wide
    entry = parse_model(f"wide=vim:{tmp_path / 'wide.pth'}")
    engine = TorchEngine([entry], EngineOptions(torch.device("cpu"), backend="torch"))
    queue = BatchQueue(engine, queue_rows=10, queue_bytes=10**9)
    control = ModelControl(engine, queue, max_models=0, patience=1)
    process = psutil.Process()
    control.load("wide")
    control.unload("wide")  # what torch keeps for good is there now
    before = process.memory_info().rss
    control.load("wide")
    loaded = process.memory_info().rss - before
    control.unload("wide")
    left = process.memory_info().rss - before
    assert loaded > 0.8 * weights
    assert left < 0.2 * loaded


def test_the_least_recently_used_model_makes_room(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    entries = [parse_model(f"{name}={DATA / 'vim_micro.pth'}") for name in names]
    engine = TorchEngine(entries, EngineOptions(torch.device("cpu"), backend="torch"))
    queue = BatchQueue(engine, queue_rows=10, queue_bytes=10**9)
    control = ModelControl(engine, queue, max_models=2, patience=0.2)

    def ready() -> list[str]:
        return [name for name, status in engine.status().items() if status.state == "ready"]

    control.load("a")
    control.load("b")
    control.use("a")
    control.load("c")
    assert ready() == ["a", "c"]
    control.pin("a")
    control.pin("c")
    with pytest.raises(Conflict, match="unpin"):
        control.load("b")
    control.pin("a", False)
    control.load("b")
    assert ready() == ["b", "c"]
    with pytest.raises(UnknownModel):
        control.known_name("no-such-model")
    queue.submit(
        EmbedRequest("b", PIXELS, EmbedOptions())
    )  # nobody takes it: the queue was not started
    with pytest.raises(NotReady, match="still in the queue"):
        control.unload("b")
