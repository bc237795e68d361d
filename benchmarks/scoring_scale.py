"""Time and memory of `vim-embed score --metric all` on many sources, beside the host's metrics.

    python benchmarks/scoring_scale.py 100000 768
    python benchmarks/scoring_scale.py 1000000 64 --approximate 0.95 --metrics mutual-knn,cka
    python benchmarks/scoring_scale.py 5000 768 --host platonic-universe/src

Two noisy views of the same sources in float32, mostly of 64 directions. With --host, a checkout of
platonic-universe, its own functions run on the same arrays in the same process: value and time of
each, beside those of the same metric here (the value alone, without interval and null).
"""

from __future__ import annotations

import argparse
import importlib
import resource
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.scoring.approximate import ApproximateSearch
from vim_embed_client.scoring.metrics import METRICS, measure, statistic
from vim_embed_client.scoring.mknn import PLATONIC_K, score_curve, searched_ks
from vim_embed_client.scoring.neighbour_lists import wide_k
from vim_embed_client.scoring.neighbours import NeighbourSearch

Array = NDArray[Any]

KS = [1, 2, 5, 10, 20, 50, 100]

# Of platonic-universe: module of pu.metrics, function, keywords.
HOST: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mutual-knn": ("neighbors", "mknn", {"k": 10}),
    "cka": ("kernel", "cka", {}),
    "procrustes": ("geometric", "procrustes", {}),
    "svcca": ("cca", "svcca", {}),
    "rsa": ("neighbors", "rsa", {"method": "pearson"}),
    "linear-r2": ("regression", "linear_r2", {"cv": 5}),
}


def views(n: int, d: int, seed: int = 0) -> tuple[Array, Array]:
    """(n, d) twice: the same sources with noise of their own."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(min(64, d), d)) / np.arange(1, min(64, d) + 1)[:, None] ** 0.5
    truth = rng.normal(size=(n, len(directions)))
    first, second = (
        (truth + 0.5 * rng.normal(size=truth.shape)) @ directions + 0.05 * rng.normal(size=(n, d))
        for _ in range(2)
    )
    return first.astype(np.float32), second.astype(np.float32)


@dataclass(frozen=True)
class Seconds:
    """wall: as a clock says. cpu: of all threads, whatever else the machine does."""

    wall: float
    cpu: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __str__(self) -> str:
        return f"{self.wall:.2f} s, {self.cpu:.2f} CPU s"


def timed(work: Callable[[], Any]) -> tuple[Any, Seconds]:
    """What it returns, and how long it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def everything(x: Array, y: Array, metrics: list[str], approximate: float | None) -> None:
    """Print the time of each part of `score --metric all`."""
    find = None if approximate is None else ApproximateSearch(approximate)
    searches = [NeighbourSearch(z, find) for z in (x, y)]
    ks = searched_ks(KS, len(x)) | {wide_k(PLATONIC_K, len(x))}
    whole = Seconds(0, 0)

    def part(name: str, work: Callable[[], Any]) -> Any:
        nonlocal whole
        found, seconds = timed(work)
        whole += seconds
        print(f"{name}: {seconds}", flush=True)
        return found

    def find_all() -> None:
        for search in searches:
            search.find(ks)

    part("neighbours", find_all)
    for recall in find.recalls if find else []:
        print(f"  {recall}")
    first, second = searches
    curve = part("MKNN at 7 k", lambda: score_curve(first, second, KS))
    print("  " + ", ".join(f"{score.k}: {score.mknn:.4f}" for score in curve))
    found = part("metrics", lambda: measure(first, second, metrics))
    for each in found:
        print(f"  {each.metric:13} {each.value:.4f} {each.low:.4f} to {each.high:.4f}")
    print(f"all: {whole}")


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def host_function(source: Path, name: str) -> Callable[[Array, Array], Any]:
    """The host's function, of its metrics alone: the package itself imports much more."""
    module, function, keywords = HOST[name]
    if "pu" not in sys.modules:
        package = types.ModuleType("pu")
        package.__path__ = [str(source / "pu")]
        sys.modules["pu"] = package
    found = getattr(importlib.import_module(f"pu.metrics.{module}"), function)
    return lambda x, y: found(x, y, **keywords)


def value_here(x: Array, y: Array, name: str) -> float:
    return statistic(x, y, name).paired(None)


def beside_host(x: Array, y: Array, source: Path) -> None:
    # The host's procrustes is a distance, and its folds of linear-r2 are not every fifth row.
    for name in HOST:
        mine, seconds = timed(partial(value_here, x, y, name))
        line = f"{name:13} here {mine:.6f} in {seconds}; host"
        try:
            theirs, host_seconds = timed(partial(host_function(source, name), x, y))
        except Exception as error:  # the host's code may need what is not installed
            print(line, f"{type(error).__name__}: {error}", flush=True)
            continue
        value = theirs if isinstance(theirs, float) else np.ravel(theirs)[0]
        print(line, f"{value:.6f} in {host_seconds}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("n", type=int)
    parser.add_argument("d", type=int)
    parser.add_argument("--metrics", default=",".join(METRICS))
    parser.add_argument("--approximate", type=float, help="recall of neighbours by faiss")
    parser.add_argument("--host", type=Path, help="src folder of platonic-universe")
    given = parser.parse_args()
    x, y = views(given.n, given.d)
    if given.host:
        beside_host(x, y, given.host)
        return
    everything(x, y, given.metrics.split(","), given.approximate)
    print(f"{given.n} x {given.d}: peak memory {peak_gb():.2f} GB")


if __name__ == "__main__":
    main()
