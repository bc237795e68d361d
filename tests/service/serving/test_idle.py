"""Idle models: their memory goes back, the next request loads them again and no row is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from support.fixtures_vim import DATA
from support.serving import NPY, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.build import build_engines
from vim_embed.engines.device_group import EngineGroup
from vim_embed.engines.interface import ModelRegistry
from vim_embed.engines.torch_engine import EngineOptions, TorchEngine
from vim_embed.errors import DeadlineExceeded, NotReady
from vim_embed.http.app import create_app
from vim_embed.serving.idle import IdleModels
from vim_embed.serving.model_control import ModelControl
from vim_embed.serving.service import Service
from vim_embed.settings import Settings
from vim_embed.types.devices import memory_share
from vim_embed.weights.catalogue import parse_model
from vim_embed_client import Client
from vim_embed_client.client import ready_model

MICRO = f"micro={DATA / 'vim_micro.pth'}"
PLUS = f"plus={DATA / 'vim_micro_stride8.pth'}"
PIXELS = np.random.default_rng(5).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
SOON = 0.05  # seconds without a request after which a model rests


def until(condition: object) -> None:
    end = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


class Seen:
    """An observer, and who uses the models."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.busy: set[str] = set()

    def rested(self, model: str) -> None:
        self.events.append(f"{model} rests")

    def loaded_again(self, model: str, seconds: float) -> None:
        self.events.append(f"{model} is back")

    def busy_with(self, model: str) -> bool:
        return model in self.busy


@contextmanager
def idle_models(engine: ModelRegistry, seen: Seen) -> Iterator[IdleModels]:
    engine.load()
    control = ModelControl(engine, seen, max_models=0, patience=1.0)
    idle = IdleModels(engine, control, SOON, seen)
    idle.start()
    yield idle
    idle.stop()


def state(engine: ModelRegistry, model: str = "arithmetic") -> str:
    return engine.status()[model].state


async def test_a_model_rests_and_comes_back_once_for_all_who_wait() -> None:
    engine, seen = ArithmeticEngine(), Seen()
    loads, gate = [], threading.Event()
    load = engine.load_model

    def slowly(name: str) -> None:
        loads.append(name)
        assert gate.wait(60)
        load(name)

    engine.load_model = slowly  # type: ignore[method-assign]
    with idle_models(engine, seen) as idle:
        await asyncio.to_thread(until, lambda: "arithmetic rests" in seen.events)
        assert state(engine) == "idle"

        async def use() -> float:
            async with idle.using("arithmetic", time.monotonic() + 60) as waited:
                assert state(engine) == "ready"
                return waited

        users = [asyncio.create_task(use()) for _ in range(5)]
        await asyncio.to_thread(until, lambda: loads)
        gate.set()
        assert all(waited > 0 for waited in await asyncio.gather(*users))
        assert loads == ["arithmetic"]
        await asyncio.to_thread(until, lambda: seen.events.count("arithmetic rests") == 2)


async def test_a_model_does_not_rest_while_it_is_used() -> None:
    engine, seen = ArithmeticEngine(("used", "busy", "pinned", "left")), Seen()
    seen.busy = {"busy"}
    with idle_models(engine, seen) as idle:
        idle._control.pin("pinned")
        async with idle.using("used", time.monotonic() + 60) as waited:
            assert waited == 0
            await asyncio.to_thread(until, lambda: state(engine, "left") == "idle")
            await asyncio.sleep(3 * SOON)
            assert [state(engine, name) for name in ("used", "busy", "pinned")] == ["ready"] * 3
        await asyncio.to_thread(until, lambda: state(engine, "used") == "idle")


async def test_who_waits_too_long_is_told_and_the_load_goes_on() -> None:
    engine, seen, gate = ArithmeticEngine(), Seen(), threading.Event()
    load = engine.load_model

    def slowly(name: str) -> None:
        assert gate.wait(60)
        load(name)

    engine.load_model = slowly  # type: ignore[method-assign]
    with idle_models(engine, seen) as idle:
        await asyncio.to_thread(until, lambda: state(engine) == "idle")
        with pytest.raises(DeadlineExceeded, match="still being loaded"):
            async with idle.using("arithmetic", time.monotonic() + 0.01):
                pass
        gate.set()
        await asyncio.to_thread(until, lambda: "arithmetic is back" in seen.events)


async def test_a_model_that_cannot_come_back_says_why_and_is_tried_again(tmp_path: Path) -> None:
    weights = tmp_path / "micro.pth"
    weights.write_bytes((DATA / "vim_micro.pth").read_bytes())
    options = EngineOptions(torch.device("cpu"))
    settings = Settings(models=(f"micro={weights}",), device="cpu", idle_unload=SOON)
    engine = TorchEngine([parse_model(f"micro={weights}")], options)
    with running(create_app(settings, engine)) as url:
        right = embed(url)
        until(lambda: entry(url)["state"] == "idle")
        weights.rename(tmp_path / "elsewhere")
        refused = await asyncio.to_thread(post, url)
        assert refused.status_code == 503
        assert "micro.pth" in refused.json()["error"]["message"]
        status = entry(url)
        assert status["state"] == "idle"
        assert "the next request tries again" in str(status["reason"])
        degraded = httpx.get(f"{url}/health/ready").json()["degraded"]
        assert "could not be loaded again" in degraded["micro"]
        (tmp_path / "elsewhere").rename(weights)
        assert embed(url) == right
        assert not httpx.get(f"{url}/health/ready").json()["degraded"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = Settings(models=(MICRO, PLUS), device="cpu", exact=True, idle_unload=0.3)
    with running(create_app(settings)) as address:
        yield address


def post(url: str, model: str = "micro", timeout: float | None = None) -> httpx.Response:
    query = {"model": model} | ({} if timeout is None else {"timeout": str(timeout)})
    return httpx.post(f"{url}/embed", params=query, content=npy(PIXELS), headers=NPY, timeout=60)


def embed(url: str, model: str = "micro") -> bytes:
    answer = post(url, model)
    assert answer.status_code == 200, answer.text
    return answer.content


def entry(url: str, model: str = "micro") -> dict[str, object]:
    found: dict[str, object] = httpx.get(f"{url}/models/{model}").json()
    return found


def test_rows_after_a_rest_are_those_before(url: str) -> None:
    right = embed(url)
    until(lambda: entry(url)["state"] == "idle")
    resting = entry(url)
    assert resting["dim"] == 32 or resting["dim"]
    assert "the next request loads it" in str(resting["reason"])
    ready = httpx.get(f"{url}/health/ready")
    assert ready.status_code == 200
    assert ready.json()["models"]["micro"] == "idle"
    assert 'vim_embed_model_idle{model="micro"} 1.0' in httpx.get(f"{url}/metrics").text
    again = post(url)
    assert again.content == right
    assert again.headers["server-timing"].startswith("load;dur=")
    metrics = httpx.get(f"{url}/metrics").text
    assert 'vim_embed_model_ready{model="micro"} 1.0' in metrics
    assert 'vim_embed_load_seconds_count{model="micro"}' in metrics
    assert 'vim_embed_reloads_total{model="micro"}' in metrics


def test_a_client_takes_an_idle_model_for_one_that_answers(url: str) -> None:
    until(lambda: entry(url)["state"] == "idle")
    with Client(url) as client:
        assert ready_model(client, "micro")["name"] == "micro"
        assert client.layers("micro")[-1] == "last_hidden_state"
        found = client.embed(PIXELS, model="micro")
    assert "load" in found.server_timing[0]


def test_many_clients_of_two_models_that_come_and_go(url: str) -> None:
    right = {model: embed(url, model) for model in ("micro", "plus")}

    def client(number: int) -> None:
        random = np.random.default_rng(number)
        for _ in range(4):
            time.sleep(float(random.uniform(0.0, 0.5)))
            model = str(random.choice(["micro", "plus"]))
            assert embed(url, model) == right[model]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(client, range(4)))


def test_the_memory_of_an_idle_model_is_let_go() -> None:
    engine = TorchEngine([parse_model(MICRO)], EngineOptions(torch.device("cpu")))
    engine.load()
    engine.rest("micro", "nobody asked")
    assert not engine._models
    with pytest.raises(KeyError):
        engine.golden("micro")
    assert engine.layer_names("micro", "blocks")[-1] == "last_hidden_state"
    assert engine.batch_rows("micro", (3, 64, 64)) == 8


def test_a_device_that_never_had_the_model_stays_as_it_is() -> None:
    first, second = ArithmeticEngine(device="cuda:0"), ArithmeticEngine(device="cuda:1")
    group = EngineGroup([first, second])
    group.load()
    group.rest("arithmetic", "nobody asked")
    assert group.status()["arithmetic"].state == "idle"
    assert group.layer_names("arithmetic", "blocks") == ["first", "last_hidden_state"]


async def test_without_the_setting_nothing_is_held() -> None:
    engine, seen = ArithmeticEngine(), Seen()
    engine.load()
    control = ModelControl(engine, seen, max_models=0, patience=1.0)
    idle = IdleModels(engine, control, 0.0, seen)
    async with idle.using("arithmetic", 0.0) as waited:
        assert waited == 0.0


def test_an_idle_model_keeps_its_place_among_the_most_that_are_loaded() -> None:
    engine, seen = ArithmeticEngine(("a", "b")), Seen()
    engine.load()
    control = ModelControl(engine, seen, max_models=2, patience=1.0)
    assert control.rest("a", "nobody asked")
    control.load("a")
    assert [status.state for status in engine.status().values()] == ["ready", "ready"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90.0), ("1.5s", 1.5), ("30m", 1800.0), ("2h", 7200.0), ("1d", 86400.0)],
)
def test_times_have_units(text: str, seconds: float) -> None:
    assert Settings(idle_unload=text).idle_unload == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "3 weeks", "m", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="idle_unload"):
        Settings(idle_unload=text)


def test_fewer_devices_than_expected_are_degraded() -> None:
    from vim_embed.serving.service import build_service

    service: Service = build_service(Settings(devices_expected=2), ArithmeticEngine())
    assert service.degraded()["devices"] == "2 are expected, 1 were found at the start"
    assert "vim_embed_degraded 1.0" in service.metrics.text().decode()
    with pytest.raises(NotReady):
        service.ready_model(None)


@pytest.mark.parametrize(
    ("most", "share"),
    [("0.5", 0.5), ("1", 1.0), ("20GB", 0.25), ("40 GB", 0.5), ("1GiB", 2**30 / 80e9)],
)
def test_a_cap_is_a_share_or_bytes(most: str, share: float) -> None:
    assert memory_share(most, int(80e9)) == pytest.approx(share)


@pytest.mark.parametrize(
    ("most", "message"),
    [("2", "not within"), ("90GB", "not within"), ("0", "not within"), ("20G", "no unit: write"),
     ("half", "no size"), ("-1GB", "no size")],
)  # fmt: skip
def test_other_caps_are_refused(most: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        memory_share(most, int(80e9))


def test_a_cap_without_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="gpu_memory is for GPUs"):
        build_engines(Settings(models=(MICRO,), device="cpu", gpu_memory="0.5"))
