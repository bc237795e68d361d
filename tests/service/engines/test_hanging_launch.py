"""A forward that hangs within its launch holds up nobody for good, whatever it locked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from support.fixtures_vim import DATA
from vim_embed.engines import torch_engine
from vim_embed.engines.interface import Outputs
from vim_embed.engines.torch_engine import EngineOptions, TorchEngine
from vim_embed.inference.cuda_graphs import CaptureTurns
from vim_embed.inference.embedder import Embedder
from vim_embed.types.model_info import EMBEDDING, EmbedOptions
from vim_embed.weights.catalogue import parse_model

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)


class Hang:
    """The first call stays until it is let go."""

    def __init__(self) -> None:
        self.began, self.let_go = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> None:
        if not self.began.is_set():
            self.began.set()
            assert self.let_go.wait(60)


def in_thread(do: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(do())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


@pytest.mark.parametrize("within", ["the engine's launch", "the model's own locks"])
def test_a_hang_within_the_launch_ends_with_its_generation(
    within: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = Hang()
    on_forward = hang if within == "the engine's launch" else None
    options = EngineOptions(torch.device("cpu"), backend="torch", on_forward=on_forward)
    engine = TorchEngine([parse_model(f"micro={DATA / 'vim_micro.pth'}")], options)
    engine.load()

    def run() -> Outputs:
        return engine.run(engine.stage("micro", [PIXELS], EmbedOptions()))

    if on_forward is None:
        compute = Embedder.compute

        def hanging(model: Embedder, *arguments: Any) -> Any:
            hang()
            return compute(model, *arguments)

        monkeypatch.setattr(Embedder, "compute", hanging)
    stuck, first = in_thread(run)
    assert hang.began.wait(20)
    queued, second = in_thread(run)  # waits for the launch, and is left behind with it
    engine.restart()
    right = run()[EMBEDDING]
    assert right.shape == (2, 64)
    hang.let_go.set()
    for thread in (stuck, queued):
        thread.join(20)
        assert not thread.is_alive()
    np.testing.assert_array_equal(first[0][EMBEDDING], right)  # late, and to nobody
    # It waited for what is gone, or came while no model was there.
    assert isinstance(second[0], RuntimeError | KeyError)
    np.testing.assert_array_equal(run()[EMBEDDING], right)


def test_a_capture_that_hangs_gives_up_its_turn() -> None:
    turns, hang = CaptureTurns(), Hang()
    order: list[str] = []

    def capture(device: str) -> None:
        with turns.of(device):
            order.append(device)
            hang()

    stuck, _ = in_thread(lambda: capture("cuda:0"))
    assert hang.began.wait(20)
    other, _ = in_thread(lambda: capture("cuda:1"))
    turns.abandon("cuda:1")  # has no turn: nothing changes
    assert order == ["cuda:0"]
    turns.abandon("cuda:0")
    other.join(20)
    assert order == ["cuda:0", "cuda:1"]
    with turns.of("cuda:1"):
        hang.let_go.set()
        stuck.join(20)  # it ends late, and takes nobody's turn away
        again, _ = in_thread(lambda: capture("cuda:0"))
        assert order == ["cuda:0", "cuda:1"]
    again.join(20)
    assert order == ["cuda:0", "cuda:1", "cuda:0"]


@pytest.mark.parametrize("named", ["cuda", "cuda:0"])
def test_a_restart_ends_the_wait_for_a_capture_that_hangs(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the engine's device is written: tensors say its number."""
    turns = CaptureTurns()
    monkeypatch.setattr(torch_engine, "CAPTURE_TURNS", turns)
    monkeypatch.setattr(torch_engine, "HostStaging", lambda _: None)
    monkeypatch.setattr(TorchEngine, "_check_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    engine = TorchEngine([], EngineOptions(torch.device(named)))
    hangs = turns.of("cuda:0")
    hangs.__enter__()
    engine.restart()
    thread, found = in_thread(lambda: turns.of("cuda:0").__enter__())
    thread.join(20)
    assert found == [None]
    turns.abandon("cuda:0")
