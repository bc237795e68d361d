"""Every metric beside the code of its authors, on random, degenerate and hostile embeddings.

    python benchmarks/scoring_public.py --platonic-rep DIR --host DIR/src --svcca DIR

platonic-rep: a checkout of minyoungg/platonic-rep. host: of UniverseTBD/platonic-universe. svcca:
of google/svcca. Needs torch and scikit-learn. Each metric is computed here and there from the same
arrays; printed is the largest difference over five random inputs, and then the values for each
other kind of input, or what either says instead of a value.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.scoring.metrics import statistic

Array = NDArray[Any]
Metric = Callable[[Array, Array], float]
K = 10


def edit_distance(first: Any, second: Any) -> int:
    """torchaudio's function of this name: the Levenshtein distance."""
    above = list(range(len(second) + 1))
    for i, one in enumerate(first, 1):
        row = [i]
        for j, other in enumerate(second, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (one != other)))
        above = row
    return above[-1]


def of_platonic_rep(folder: Path) -> dict[str, Metric]:
    """Its functions, of rows of length one where the metric is one of cosines."""
    import torch

    functional = types.ModuleType("torchaudio.functional")
    functional.edit_distance = edit_distance  # type: ignore[attr-defined]
    audio = types.ModuleType("torchaudio")
    audio.functional = functional  # type: ignore[attr-defined]
    sys.modules |= {"torchaudio": audio, "torchaudio.functional": functional}
    sys.path.insert(0, str(folder))
    metrics = importlib.import_module("metrics").AlignmentMetrics

    def tensors(x: Array, y: Array, unit: bool = False) -> list[Any]:
        found = [torch.from_numpy(np.ascontiguousarray(z, np.float64)) for z in (x, y)]
        return [torch.nn.functional.normalize(z, dim=1) if unit else z for z in found]

    def call(name: str, x: Array, y: Array, *, unit: bool, **options: Any) -> float:
        return float(metrics.measure(name, *tensors(x, y, unit), **options))

    def scaled_cka(x: Array, y: Array, *, unbiased: bool) -> float:
        return float(metrics.cka(*(1e3 * z for z in tensors(x, y)), unbiased=unbiased))

    return {
        "mutual-knn": lambda x, y: call("mutual_knn", x, y, unit=True, topk=K),
        "cycle-knn": lambda x, y: call("cycle_knn", x, y, unit=True, topk=K),
        "lcs-knn": lambda x, y: call("lcs_knn", x, y, unit=True, topk=K) / K,
        "edit-knn": lambda x, y: call("edit_distance_knn", x, y, unit=True, topk=K),
        # It adds 1e-6 to denominators, which longer rows make negligible.
        "cknna": lambda x, y: float(metrics.cknna(*(1e3 * z for z in tensors(x, y, True)), topk=K)),
        "cka": lambda x, y: scaled_cka(x, y, unbiased=False),
        "unbiased-cka": lambda x, y: scaled_cka(x, y, unbiased=True),
    }


def of_host(source: Path) -> dict[str, Metric]:
    package = types.ModuleType("pu")
    package.__path__ = [str(source / "pu")]
    sys.modules["pu"] = package

    def call(module: str, name: str, x: Array, y: Array, **options: Any) -> float:
        function = getattr(importlib.import_module(f"pu.metrics.{module}"), name)
        return float(function(x, y, **options))

    def similarity(x: Array, y: Array) -> float:
        """Its Procrustes is a distance, and takes embeddings of one width."""
        width = max(x.shape[1], y.shape[1])
        x, y = (np.pad(z, ((0, 0), (0, width - z.shape[1]))) for z in (x, y))
        return 1 - call("geometric", "procrustes", x, y) ** 2 / 2

    return {
        "mutual-knn": lambda x, y: call("neighbors", "mknn", x, y, k=K),
        "cka": lambda x, y: call("kernel", "cka", x, y),
        "rsa": lambda x, y: call("neighbors", "rsa", x, y, method="pearson"),
        "procrustes": similarity,
        "svcca": lambda x, y: call("cca", "svcca", x, y),
        "linear-r2": lambda x, y: ridge(call, x, y),
    }


def ridge(call: Callable[..., float], x: Array, y: Array) -> float:
    """The host's folds are contiguous: rows in an order in which these are every fifth."""
    order = np.argsort(np.arange(len(x)) % 5, kind="stable")
    return call("regression", "linear_r2", x[order], y[order], cv=5)


def of_svcca(folder: Path) -> dict[str, Metric]:
    """PWCCA of its canonical variables. Its own pwcca.py leaves their whitening out."""
    sys.path.insert(0, str(folder))
    core = importlib.import_module("cca_core")

    def pwcca(x: Array, y: Array) -> float:
        # It keeps all components, and adds means to what it has centred.
        x, y = (z - z.mean(axis=0) for z in (x, y))
        found = core.get_cca_similarity(x.T, y.T, verbose=False, compute_dirns=True)
        variables, _ = np.linalg.qr(found["cca_dirns1"].T)
        weights = np.abs(variables.T @ x).sum(axis=1)
        return float(found["cca_coef1"] @ weights[: len(found["cca_coef1"])] / weights.sum())

    return {"pwcca": pwcca}


def random_views(seed: int, n: int = 120) -> tuple[Array, Array]:
    """Of a spectrum so flat that 99 % of the variance are all components."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 12))
    return z + 0.1, z @ rng.normal(size=(12, 12)) + 2 * rng.normal(size=(n, 12))


def unrelated(shape: tuple[int, int, int]) -> tuple[Array, Array]:
    x, y = np.random.default_rng(8).normal(size=shape)
    return x, y


def changed(change: Callable[[Array], Any]) -> tuple[Array, Array]:
    x, y = random_views(7)
    found = change(x)
    return (x if found is None else found), y


def constant_columns(x: Array) -> Array:
    return np.pad(x, ((0, 0), (0, 3)), constant_values=7.0)


def setting(rows: Any, value: float) -> Callable[[Array], None]:
    def change(x: Array) -> None:
        x[rows] = value

    return change


def duplicated(x: Array) -> None:
    x[60:70] = x[0]


def scaled(length: float, dtype: Any) -> Callable[[Array], Array]:
    return lambda x: (x.astype(np.float64) * length).astype(dtype)


def strided(x: Array) -> Array:
    return np.repeat(np.asfortranarray(x), 2, axis=0)[::2]


def uneven(x: Array) -> None:
    x[::4] *= 1e4


KINDS: dict[str, Callable[[], tuple[Array, Array]]] = {
    "constant columns": lambda: changed(constant_columns),
    "rows of unequal length": lambda: changed(uneven),
    "duplicate rows": lambda: changed(duplicated),
    "rank 2": lambda: changed(lambda x: x[:, :2] @ x[:2, :]),
    "n < d": lambda: unrelated((2, 15, 40)),
    "n little below d": lambda: unrelated((2, 20, 22)),
    "n = k + 1": lambda: random_views(10, K + 1),
    "n = k + 2": lambda: random_views(11, K + 2),
    "one column": lambda: changed(lambda x: x[:, :1]),
    "all rows zero": lambda: changed(setting(slice(None), 0.0)),
    "one row zero": lambda: changed(setting(5, 0.0)),
    "all rows alike": lambda: changed(setting(slice(None), 3.0)),
    "one row NaN": lambda: changed(setting(5, np.nan)),
    "one row infinite": lambda: changed(setting(5, np.inf)),
    "float16": lambda: changed(lambda x: x.astype(np.float16)),
    "float32": lambda: changed(lambda x: x.astype(np.float32)),
    "whole numbers": lambda: changed(lambda x: np.rint(10 * x).astype(np.int16)),
    "8-bit numbers": lambda: changed(lambda x: np.clip(np.rint(20 * x), -128, 127).astype(np.int8)),
    "not contiguous": lambda: changed(strided),
    "huge, float32": lambda: changed(scaled(1e30, np.float32)),
    "tiny, float32": lambda: changed(scaled(1e-30, np.float32)),
    "huge, float64": lambda: changed(scaled(1e200, np.float64)),
    "tiny, float64": lambda: changed(scaled(1e-200, np.float64)),
    "far from zero": lambda: changed(lambda x: x + 1e4),
    "itself": lambda: (random_views(7)[0],) * 2,
}


def told(metric: Metric, x: Array, y: Array) -> float | str:
    """The value, or the error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return metric(x, y)
    except Exception as error:  # whatever the code of others raises
        return f"{type(error).__name__}: {str(error)[:70]}"


def ours(name: str) -> Metric:
    return lambda x, y: statistic(x, y, name, k=K).paired(None)


def random_inputs(peers: dict[str, dict[str, Metric]]) -> None:
    print("largest difference on five random inputs")
    for peer, metrics in peers.items():
        for name, theirs in metrics.items():
            apart = [
                abs(ours(name)(*random_views(seed)) - theirs(*random_views(seed)))
                for seed in range(5)
            ]
            print(f"  {name:13} {peer:14} {max(apart):.1e}")


def other_inputs(peers: dict[str, dict[str, Metric]]) -> None:
    for kind, make in KINDS.items():
        print(kind)
        for peer, metrics in peers.items():
            for name, theirs in metrics.items():
                mine, other = told(ours(name), *make()), told(theirs, *make())
                if isinstance(mine, float) and isinstance(other, float):
                    same = abs(mine - other) <= 1e-6
                    note = "" if same else "   <- differs"
                    print(f"  {name:13} {peer:14} {mine:.9f} {other:.9f}{note}")
                else:
                    print(f"  {name:13} {peer:14} {mine}   |   {other}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name in PEERS:
        parser.add_argument(f"--{name}", type=Path, help="its checkout")
    given = vars(parser.parse_args())
    folders = {name: given[name.replace("-", "_")] for name in PEERS}
    peers = {name: PEERS[name](folder) for name, folder in folders.items() if folder}
    random_inputs(peers)
    other_inputs(peers)


PEERS: dict[str, Callable[[Path], dict[str, Metric]]] = {
    "platonic-rep": of_platonic_rep,
    "host": of_host,
    "svcca": of_svcca,
}

if __name__ == "__main__":
    main()
