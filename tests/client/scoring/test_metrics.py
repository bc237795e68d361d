"""Metrics beside MKNN: against slow formulas and other libraries, and their nulls."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import pdist
from scipy.stats import pearsonr
from sklearn.cross_decomposition import CCA  # type: ignore[import-untyped]
from sklearn.linear_model import Ridge  # type: ignore[import-untyped]
from sklearn.metrics import r2_score  # type: ignore[import-untyped]

from vim_embed_client.cli.main import run
from vim_embed_client.scoring import linear_metrics
from vim_embed_client.scoring.metrics import METRICS, measure, null_threshold, statistic
from vim_embed_client.scoring.mknn import mknn, score
from vim_embed_client.scoring.moments import PairedRows
from vim_embed_client.scoring.neighbour_lists import Lists

from .related import related

Array = NDArray[Any]
K = 7


def unit(z: Array) -> Array:
    rows: Array = z / np.linalg.norm(z, axis=1, keepdims=True)
    return rows


def nearest(z: Array) -> list[list[int]]:
    """The K nearest others of each row, from all cosines."""
    cosines = unit(z) @ unit(z).T
    np.fill_diagonal(cosines, -2)
    return [list(row) for row in np.argsort(-cosines, axis=1, kind="stable")[:, :K]]


def slow_mutual(z1: Array, z2: Array) -> float:
    pairs = zip(nearest(z1), nearest(z2), strict=True)
    return float(np.mean([len(set(a) & set(b)) / K for a, b in pairs]))


def slow_cycle(z1: Array, z2: Array) -> float:
    there, back = nearest(z2), nearest(z1)
    return float(np.mean([any(row in back[j] for j in there[row]) for row in range(len(z1))]))


def lcs(a: list[int], b: list[int]) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + lcs(a[:-1], b[:-1])
    return max(lcs(a[:-1], b), lcs(a, b[:-1]))


def edits(a: list[int], b: list[int]) -> int:
    if not a or not b:
        return len(a) + len(b)
    if a[-1] == b[-1]:
        return edits(a[:-1], b[:-1])
    return 1 + min(edits(a[:-1], b), edits(a, b[:-1]), edits(a[:-1], b[:-1]))


def slow_lcs(z1: Array, z2: Array) -> float:
    pairs = zip(nearest(z1), nearest(z2), strict=True)
    return float(np.mean([lcs(a, b) / K for a, b in pairs]))


def slow_edit(z1: Array, z2: Array) -> float:
    pairs = zip(nearest(z1)[:12], nearest(z2)[:12], strict=True)
    return float(np.mean([1 - edits(a, b) / K for a, b in pairs]))


def hsic(k: Array, other: Array) -> float:
    """The unbiased estimate as the mean over all quadruples would be, by equation 5."""
    n = len(k)
    k, other = k * (1 - np.eye(n)), other * (1 - np.eye(n))
    ones = np.ones(n)
    total = (ones @ k @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
    cross = 2 * (ones @ k @ other @ ones) / (n - 2)
    return float((np.trace(k @ other) + total - cross) / (n * (n - 3)))


def aligned(k: Array, other: Array, own: Array, others: Array) -> float:
    return hsic(k, other) / float(np.sqrt(hsic(own, own) * hsic(others, others)))


def slow_unbiased_cka(z1: Array, z2: Array) -> float:
    k, other = z1 @ z1.T, z2 @ z2.T
    return aligned(k, other, k, other)


def slow_cknna(z1: Array, z2: Array) -> float:
    n = len(z1)
    kernels, masks = [unit(z) @ unit(z).T for z in (z1, z2)], [np.zeros((n, n)) for _ in range(2)]
    for mask, z in zip(masks, (z1, z2), strict=True):
        for row, others in enumerate(nearest(z)):
            mask[row, others] = 1
    both = masks[0] * masks[1]
    return aligned(
        both * kernels[0], both * kernels[1], masks[0] * kernels[0], masks[1] * kernels[1]
    )


def slow_cka(z1: Array, z2: Array) -> float:
    n = len(z1)
    h = np.eye(n) - 1 / n
    k, other = h @ z1 @ z1.T @ h, h @ z2 @ z2.T @ h
    return float(np.trace(k @ other) / np.sqrt(np.trace(k @ k) * np.trace(other @ other)))


def slow_rsa(z1: Array, z2: Array) -> float:
    return float(pearsonr(pdist(z1, "cosine"), pdist(z2, "cosine")).statistic)


def slow_procrustes(z1: Array, z2: Array) -> float:
    width = max(z1.shape[1], z2.shape[1])
    a, b = (np.pad(z - z.mean(0), ((0, 0), (0, width - z.shape[1]))) for z in (z1, z2))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    rotation, _ = orthogonal_procrustes(a, b)
    return float(1 - np.square(a @ rotation - b).sum() / 2)


def leading(z: Array) -> Array:
    """Principal components that hold 99 % of the variance."""
    u, s, _ = np.linalg.svd(z - z.mean(0), full_matrices=False)
    kept = int(np.searchsorted(np.cumsum(s**2) / (s**2).sum(), 0.99)) + 1
    scores: Array = u[:, :kept] * s[:kept]
    return scores


def slow_svcca(z1: Array, z2: Array) -> float:
    """By the canonical variables of scikit-learn."""
    a, b = leading(z1), leading(z2)
    model = CCA(n_components=min(a.shape[1], b.shape[1]), scale=False, max_iter=5000, tol=1e-12)
    left, right = model.fit(a, b).transform(a, b)
    pairs = zip(left.T, right.T, strict=True)
    return float(np.mean([np.corrcoef(u, v)[0, 1] for u, v in pairs]))


def slow_pwcca(z1: Array, z2: Array) -> float:
    (qa, _), (qb, _) = (np.linalg.qr(leading(z)) for z in (z1, z2))
    rotation, correlations, _ = np.linalg.svd(qa.T @ qb, full_matrices=False)
    weights = np.abs((qa @ rotation).T @ (z1 - z1.mean(0))).sum(axis=1)
    return float(correlations @ weights / weights.sum())


def slow_r2(z1: Array, z2: Array) -> float:
    fold = np.arange(len(z1)) % 5
    kept = z2[:, z2.std(axis=0) > 0]
    found = []
    for each in range(5):
        train, test = fold != each, fold == each
        model = Ridge(alpha=1.0).fit(z1[train], kept[train])
        found.append(r2_score(kept[test], model.predict(z1[test])))
    return float(np.mean(found))


SLOW: dict[str, Callable[[Array, Array], float]] = {
    "mutual-knn": slow_mutual,
    "cycle-knn": slow_cycle,
    "lcs-knn": slow_lcs,
    "cknna": slow_cknna,
    "cka": slow_cka,
    "unbiased-cka": slow_unbiased_cka,
    "rsa": slow_rsa,
    "procrustes": slow_procrustes,
    "svcca": slow_svcca,
    "pwcca": slow_pwcca,
    "linear-r2": slow_r2,
}


def with_constant_columns(seed: int) -> tuple[Array, Array]:
    z1, z2 = related(seed)
    return np.pad(z1, ((0, 0), (0, 2)), constant_values=3), np.pad(z2, ((0, 0), (1, 0)))


def with_long_and_short_rows(seed: int) -> tuple[Array, Array]:
    z1, z2 = related(seed)
    z1[::4] *= 1e4
    z2[1::4] *= 1e-3
    return z1, z2


CASES = [*((related, seed) for seed in range(5)), (with_constant_columns, 5)]


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize(("make", "seed"), [*CASES, (with_long_and_short_rows, 6)])
def test_a_metric_is_its_definition(name: str, make: Any, seed: int) -> None:
    z1, z2 = make(seed)
    found = statistic(z1, z2, name, k=K)
    assert found.paired(None) == pytest.approx(SLOW[name](z1, z2), abs=1e-6)


def test_edit_distance_is_its_definition() -> None:
    z1, z2 = related(0, 12)
    found = statistic(z1, z2, "edit-knn", k=K)
    assert found.paired(None) == pytest.approx(slow_edit(z1, z2), abs=1e-12)


def test_every_metric_has_a_slow_formula() -> None:
    assert set(METRICS) == set(SLOW) | {"edit-knn"}


def test_mutual_knn_is_mknn() -> None:
    z1, z2 = related(1, 200)
    (found,) = measure(z1, z2, ["mutual-knn"], permutations=50)
    other = score(z1, z2, 10, permutations=50)
    assert found.value == mknn(z1, z2)
    assert (found.permuted_mean, found.p_value) == (other.permuted_mean, other.p_value)
    assert 0.5 < found.std_error / other.std_error < 2


@pytest.mark.parametrize("name", METRICS)
def test_a_pairing_is_that_of_permuted_rows(name: str) -> None:
    z1, z2 = related(2)
    order = np.random.default_rng(0).permutation(40)
    found = statistic(z1, z2, name, k=K)
    permuted = statistic(z1, z2[order], name, k=K)
    assert found.paired(order) == pytest.approx(permuted.paired(None), abs=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_leaving_sources_out_is_scoring_the_others(name: str) -> None:
    z1, z2 = related(3, 60)
    out = np.zeros(60, bool)
    out[[4, 17, 59]] = True
    found = statistic(z1, z2, name, k=K)
    if name == "linear-r2":  # the other sources keep their folds
        rows = PairedRows(z1[~out], z2[~out], folds=(np.arange(60) % 5)[~out])
        expected = linear_metrics.linear_r2(rows.paired(None))
    else:
        expected = statistic(z1[~out], z2[~out], name, k=K).paired(None)
    assert found.without(out) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_a_rotation_is_seen_as_none_and_noise_as_chance(name: str) -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(size=(150, 6))
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    same, unrelated = (
        measure(z, other, [name], permutations=99)[0]
        for other in (z @ rotation, rng.normal(size=(150, 6)))
    )
    assert same.value == pytest.approx(1, abs=0.02)
    assert same.calibrated == pytest.approx(1, abs=0.02)
    assert same.p_value == 0.01
    assert unrelated.p_value > 0.01
    assert unrelated.calibrated < 0.1


def test_p_values_are_uniform_without_a_relation() -> None:
    rng = np.random.default_rng(6)
    found = [
        measure(rng.normal(size=(40, 3)), rng.normal(size=(40, 4)), ["unbiased-cka"],
                permutations=39, seed=draw)[0].p_value
        for draw in range(200)
    ]  # fmt: skip
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.045)
    assert np.mean(found) == pytest.approx(0.5, abs=0.08)


def test_the_calibrated_value_is_that_of_the_published_algorithm() -> None:
    permuted = np.arange(199) / 1000  # the 190th of the 200 values is the threshold
    assert null_threshold(0.5, permuted) == 0.189
    assert null_threshold(0.5, permuted[:19]) == 0.018
    assert np.isnan(null_threshold(0.5, permuted[:18]))
    (found,) = measure(*related(7), ["cka"], permutations=199)
    assert found.calibrated == (found.value - found.threshold) / (1 - found.threshold)


def test_lists_that_run_short_are_filled_with_none() -> None:
    z, _ = related(9, 30)
    out = np.zeros(30, bool)
    out[:20] = True
    lists = Lists.of(z, 5).without(out)
    kept = Lists.of(z[~out], 5).wide[:, :5]
    for row, expected in zip(lists.wide, kept, strict=True):
        found = [i for i in row if i >= 0]
        assert found == list(expected[: len(found)])
        assert list(row[len(found) :]) == [-1] * (5 - len(found))


@pytest.mark.parametrize(
    ("z1", "z2", "names", "message"),
    [
        (np.ones((12, 3)), np.eye(12), ["cka"], "no variance"),
        (np.ones((12, 3)), np.eye(12), ["mutual-knn"], "the first embedding has no variance"),
        (np.eye(12), np.ones((12, 3)), ["cknna"], "the second embedding has no variance"),
        (np.outer(np.arange(1.0, 13), np.ones(3)), np.eye(12), ["rsa"], "no geometry"),
        (np.eye(13)[:, :12], np.eye(13), ["rsa"], "row 12 is zero: it has no direction"),
        (np.eye(12), np.ones((12, 3)), ["linear-r2"], "no variance"),
        (np.eye(9), np.eye(9), ["linear-r2"], "at least 10 sources"),
        (np.eye(3), np.eye(3), ["unbiased-cka"], "at least 4 sources"),
        (np.eye(12), np.eye(12), ["ckna"], "no metric ckna: use mutual-knn, cycle-knn"),
        (np.eye(12), np.eye(13), ["cka"], "12 and 13 rows"),
        (np.eye(12), np.eye(12), ["cknna"], "k must be from 1 to 11"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    z1: Array, z2: Array, names: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure(z1, z2, names, k=12, permutations=1)


def strided(z: Array) -> Array:
    return np.repeat(np.asfortranarray(z), 2, axis=0)[::2]


def scaled(length: float, dtype: Any) -> Callable[[Array], Array]:
    return lambda z: (z * length).astype(dtype)


SAME: dict[str, Callable[[Array], Array]] = {
    "float32": lambda z: z.astype(np.float32),
    "float16": lambda z: z.astype(np.float16),
    "not contiguous": strided,
    "read-only": lambda z: np.frombuffer(z.tobytes()).reshape(z.shape),
    "huge": scaled(1e150, np.float64),
    "tiny": scaled(1e-150, np.float64),
    "huge, float32": scaled(1e35, np.float32),
    "tiny, float32": scaled(1e-30, np.float32),
}


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("name", METRICS)
def test_how_an_embedding_is_stored_does_not_matter(name: str, kind: str) -> None:
    """Ridge regression alone has a penalty for rows as they are."""
    z1, z2 = (np.rint(64 * z) / 64 for z in related(10))  # exact in float16
    scale = "huge" in kind or "tiny" in kind
    if name == "linear-r2" and scale:
        pytest.skip("its penalty is one of scale")
    plain, stored = (statistic(z, z2, name, k=K).paired(None) for z in (z1, SAME[kind](z1)))
    assert stored == pytest.approx(plain, abs=1e-6)


def both(change: Callable[[Array], Array]) -> tuple[Array, Array]:
    z1, z2 = related(0)
    return change(z1), change(z2)


def first(change: Callable[[Array], Array]) -> tuple[Array, Array]:
    z1, z2 = related(0)
    return change(z1), z2


DEGENERATE: dict[str, Callable[[], tuple[Array, Array]]] = {
    "n < d": lambda: both(
        lambda z: z[:12] @ np.random.default_rng(0).normal(size=(z.shape[1], 30))
    ),
    "n = k + 1": lambda: related(0, 10),
    "n = k + 2": lambda: related(0, 11),
    "rank 1": lambda: first(lambda z: z[:, :1] * np.arange(1.0, 5)),
    "one column": lambda: first(lambda z: z[:, :1]),
    "copies": lambda: both(lambda z: np.concatenate([z, z[:1].repeat(12, axis=0)])),
    "a constant column": lambda: with_constant_columns(0),
    "itself": lambda: (related(0)[0],) * 2,
}


@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_embeddings_have_a_value_in_range(kind: str) -> None:
    z1, z2 = DEGENERATE[kind]()
    for found in measure(z1, z2, k=min(9, len(z1) - 1), permutations=2):
        assert found.value <= 1 + 1e-9
        assert found.value >= (-np.inf if found.metric == "linear-r2" else -1)
        assert found.has_interval == (found.metric != "linear-r2" or len(z1) >= 20)
        assert kind != "itself" or found.value == pytest.approx(1, abs=0.01)


def test_mutual_knn_is_mknn_amid_ties() -> None:
    z1, z2 = DEGENERATE["one column"]()
    assert statistic(z1, z2, "mutual-knn", k=K).paired(None) == mknn(z1, z2, K)


def test_cosines_of_nearly_parallel_rows_keep_their_digits() -> None:
    z1, z2 = related(12)
    far = z1 + 1e4
    found = statistic(far, z2, "rsa")
    assert found.paired(None) == pytest.approx(slow_rsa(far, z2), abs=1e-6)
    rows = np.arange(40) < 20
    without = slow_rsa(far[~rows], z2[~rows])
    assert found.without(rows) == pytest.approx(without, abs=1e-6)


def test_the_command_measures_by_other_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    z1, z2 = related(11, 60)
    paths = [str(tmp_path / name) for name in ("a.npy", "b.npy")]
    for path, z in zip(paths, (z1, z2), strict=True):
        np.save(path, z)
    options = ["--permutations", "20"]
    assert run(["score", *paths, *options, "--metric", "all", "--json", "-k", "5"]) == 0
    printed = json.loads(capsys.readouterr().out)["metrics"]
    expected = measure(z1, z2, k=5, permutations=20)
    assert [m["metric"] for m in printed] == list(METRICS)
    assert printed == [m.as_dict() for m in expected]
    assert run(["score", *paths, *options, "--metric", "cka,linear-r2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("│ cka"))
    (cka,) = (m for m in expected if m.metric == "cka")
    assert f"│ {cka.value:.4f} │ {cka.low:.4f} to" in line
    assert f"{cka.calibrated:.4f}" in line


def test_without_a_calibrated_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "a.npy")
    np.save(path, related(11, 30)[0])
    assert run(["score", path, path, "-k", "5", "--metric", "svcca", "--permutations", "5"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "│ svcca " in text
    assert "│ none " in text  # too few pairings for a calibrated value


@pytest.mark.parametrize(
    ("metric", "code", "message"),
    [
        ("ckna", 2, "'ckna' is none of mutual-knn"),
        ("cka", 1, "cannot be measured: the first embedding"),
    ],
)
def test_the_command_says_what_cannot_be_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: str, code: int, message: str
) -> None:
    path = str(tmp_path / "a.npy")
    np.save(path, np.ones((12, 3)))
    assert run(["score", path, path, "--metric", metric]) == code
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())
