"""Engines that Ray's workers build for tests (importable there, unlike a test module), and a
cluster on this machine's loopback.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from support.waiting import until
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import Engine, EngineFailed, Outputs, Staged
from vim_embed.settings import Settings
from vim_embed.types.model_info import EMBEDDING, EmbedOptions, ModelInfo
from vim_embed.types.pixels import PixelArray

OBJECT_STORE = 200_000_000
QUICK_METRICS = {"metrics_report_interval_ms": 500}
DEADLY = 251  # a row of these pixels ends the engine
HELD = 252  # a row of these pixels stays in it


class SlowEngine(ArithmeticEngine):
    """Takes its time with each batch, so that there is something in flight when a node dies."""

    SECONDS = 0.06

    def _info(self, name: str) -> ModelInfo:
        return replace(super()._info(name), device=self.device)

    def run(self, staged: Staged) -> Outputs:
        time.sleep(self.SECONDS)
        return super().run(staged)


class VerySlowEngine(SlowEngine):
    """Leaves time to change one's mind."""

    SECONDS = 0.8


class HoldingEngine(SlowEngine):
    """Keeps a batch that has a row of HELD pixels until a file `released` is in its folder, and
    leaves a file named as its node there meanwhile: so that it is known what is under way where.
    """

    def __init__(self, names: list[str], folder: Path, node: str) -> None:
        super().__init__(names, device=f"cpu:{node}")
        self.folder = folder
        self.node = node

    def run(self, staged: Staged) -> Outputs:
        outputs = super().run(staged)
        if (outputs["embedding"][:, :3] == HELD).all(axis=1).any():
            (self.folder / self.node).touch()
            until((self.folder / "released").exists, 120)
        return outputs


class MortalEngine(ArithmeticEngine):
    """Dies for good of one kind of row."""

    dead = False

    def run(self, staged: Staged) -> Outputs:
        outputs = super().run(staged)
        means = outputs.get("embedding", np.zeros((1, 3)))[:, :3]
        self.dead = self.dead or bool((means == DEADLY).all(axis=1).any())
        if self.dead:
            raise EngineFailed("killed by a test")
        return outputs

    def restart(self) -> None:
        if self.dead:
            raise EngineFailed("killed by a test")


class Edition(ArithmeticEngine):
    """Says in its digest which edition it is, and adds that to its numbers."""

    def __init__(self, names: list[str], edition: int) -> None:
        super().__init__(names)
        self.edition = edition

    def run(self, staged: Staged) -> Outputs:
        time.sleep(0.01)
        return {name: rows + self.edition for name, rows in super().run(staged).items()}

    def _info(self, name: str) -> ModelInfo:
        info = super()._info(name)
        return replace(info, weights=replace(info.weights, digest=f"sha256:{self.edition}"))


def names(settings: Settings) -> list[str]:
    return [argument.partition("=")[0] for argument in settings.models]


def placed(settings: Settings) -> Engine:
    """The one that holds rows, whose device names the node that it is on."""
    import ray

    folder = Path(settings.models[0].partition("=")[2])
    return HoldingEngine(names(settings), folder, ray.get_runtime_context().get_node_id())


def arithmetic(settings: Settings) -> Engine:
    return ArithmeticEngine(names(settings))


def slow(settings: Settings) -> Engine:
    return SlowEngine(names(settings))


def mixed(settings: Settings) -> Engine:
    """By the model's name."""
    kinds: dict[str, type[ArithmeticEngine]] = {
        "slow": SlowEngine,
        "shared": SlowEngine,
        "left": VerySlowEngine,
        "mortal": MortalEngine,
    }
    return kinds.get(names(settings)[0], ArithmeticEngine)(names(settings))


def marking(rate: float, settings: Settings) -> Engine:
    """One that pretends a device of so many rows/s; 0: one that takes no time."""
    from over_http.marks import MarksEngine

    return MarksEngine(rate)


def first_edition(settings: Settings) -> Engine:
    return Edition(names(settings), 1)


def second_edition(settings: Settings) -> Engine:
    return Edition(names(settings), 2)


def broken(settings: Settings) -> Engine:
    raise ValueError("this model cannot be built")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def prepare_environment() -> None:
    """For Ray's processes: modules of tests/ and benchmarks/; nothing goes to the user's home."""
    root = Path(__file__).parents[2]
    ours = [str(root / "tests"), str(root / "benchmarks")]
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*ours, *given]))
    os.environ.setdefault("RAY_AUTH_TOKEN", "only-on-loopback-for-a-test-of-vim-embed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine is slow


def arithmetic_embeddings(pixels: PixelArray) -> NDArray[np.float32]:
    """What the engines above must give for rows (n, 3, H, W)."""
    engine = ArithmeticEngine()
    return engine.run(engine.stage("arithmetic", [pixels], EmbedOptions()))[EMBEDDING]


def states(url: str) -> dict[str, str]:
    """Of every model."""
    models = httpx.get(f"{url}/models").json()["models"]
    return {model["name"]: model["state"] for model in models}


class WaryEngine(ArithmeticEngine):
    """Fails on one row, and then for good."""

    refused = np.zeros(0)

    def run(self, staged: Staged) -> Outputs:
        if (vars(staged)["pixels"] == self.refused).all(axis=(1, 2, 3)).any():
            raise RuntimeError("not this one")
        return super().run(staged)


def wary(refused: str) -> Callable[[Settings], Engine]:
    """Engines that fail on the row in the file `refused`."""
    return partial(_wary, refused)


def _wary(refused: str, settings: Settings) -> Engine:
    engine = WaryEngine(names(settings))
    engine.refused = np.load(refused)
    return engine


@contextmanager
def ray_here() -> Iterator[None]:
    """Ray on one node, small."""
    import ray

    prepare_environment()
    ray.init(
        num_cpus=16,
        object_store_memory=OBJECT_STORE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        _system_config=QUICK_METRICS,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def serving_here() -> Iterator[str]:
    """Serve on the node that runs; gives the base URL."""
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
