"""Time and memory of `vim-embed score --metric all` on many sources, beside the host's metrics.

    python benchmarks/scoring_scale.py 100000 768
    python benchmarks/scoring_scale.py 5000 768 --host platonic-universe/src

Two noisy views of the same sources in float32, mostly of 64 directions. With --host, a checkout of
platonic-universe, its own functions run on the same arrays in the same process: value and CPU
seconds of each, beside those of the same metric here (the value alone, without interval and null).
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.scoring.metrics import METRICS, measure, statistic
from vim_embed_client.scoring.mknn import score_curve, searched_ks
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


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and its CPU seconds: of all threads, whatever else the machine does."""
    start = time.process_time()
    found = work()
    return found, time.process_time() - start


def everything(x: Array, y: Array, metrics: list[str]) -> dict[str, float]:
    """CPU seconds of each part of `score --metric all`; peak memory of the process in GB."""
    searches = [NeighbourSearch(z) for z in (x, y)]
    ks = searched_ks(KS, len(x)) | {22}
    seconds = {"neighbours": timed(lambda: [search.find(ks) for search in searches])[1]}
    first, second = searches
    seconds["MKNN at 7 k"] = timed(lambda: score_curve(first, second, KS))[1]
    found, seconds["metrics"] = timed(lambda: measure(first, second, metrics))
    for each in found:
        print(f"{each.metric:13} {each.value:.4f} {each.low:.4f} to {each.high:.4f}", flush=True)
    seconds["all"] = sum(seconds.values())
    return seconds


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


def beside_host(x: Array, y: Array, source: Path) -> None:
    # The host's procrustes is a distance, and its folds of linear-r2 are not every fifth row.
    print("metric        here: value, s      host: value, s")
    for name in HOST:
        mine, seconds = timed(lambda name=name: statistic(x, y, name).paired(None))
        line = f"{name:13} {mine:.6f} {seconds:8.2f} "
        try:
            theirs, host_seconds = timed(lambda name=name: host_function(source, name)(x, y))
        except Exception as error:  # the host's code may need what is not installed
            print(line, f"{type(error).__name__}: {error}", flush=True)
            continue
        value = theirs if isinstance(theirs, float) else np.ravel(theirs)[0]
        print(line, f"{value:.6f} {host_seconds:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("n", type=int)
    parser.add_argument("d", type=int)
    parser.add_argument("--metrics", default=",".join(METRICS))
    parser.add_argument("--host", type=Path, help="src folder of platonic-universe")
    given = parser.parse_args()
    x, y = views(given.n, given.d)
    if given.host:
        beside_host(x, y, given.host)
        return
    seconds = everything(x, y, given.metrics.split(","))
    print(json.dumps({name: round(value, 1) for name, value in seconds.items()}))
    print(f"{given.n} x {given.d}: peak memory {peak_gb():.2f} GB")


if __name__ == "__main__":
    main()
