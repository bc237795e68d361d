"""Many sources: fast exact selection, sums by blocks, and approximate neighbours with a recall."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vim_embed_client.cli.main import run
from vim_embed_client.scoring import approximate, mknn, moments, neighbours
from vim_embed_client.scoring.approximate import ApproximateSearch
from vim_embed_client.scoring.metrics import LINEAR_METRICS, default_permutations, statistic
from vim_embed_client.scoring.neighbours import NeighbourSearch, neighbours_for

Array = NDArray[Any]


def clumps(n: int, d: int = 8, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(20, d))
    return (centres[rng.integers(0, 20, n)] + rng.normal(size=(n, d))).astype(np.float32)


def test_a_sample_of_the_columns_leads_to_the_same_neighbours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    z = clumps(600)
    z[300:340] = z[:40]  # ties
    sampled = neighbours_for(z, [3, 7])
    monkeypatch.setattr(neighbours, "_MANY_COLUMNS", 10**9)
    for found, expected in zip(sampled, neighbours_for(z, [3, 7]), strict=True):
        assert np.array_equal(np.sort(found.indices), np.sort(expected.indices))
        assert np.array_equal(found.distances, expected.distances)


def test_neighbours_are_found_once_for_all_who_ask() -> None:
    asked: list[list[int]] = []

    def find(z: Array, ks: Any) -> Any:
        asked.append(list(ks))
        return neighbours_for(z, ks)

    search = NeighbourSearch(clumps(50), find)
    search.find([3, 5])
    search.find([5, 7])
    assert search.at(7).indices.shape == (50, 7)
    assert asked == [[3, 5], [7]]
    assert NeighbourSearch.of(search) is search


def test_the_baseline_counts_what_random_pairs_share() -> None:
    first, second = (neighbours_for(clumps(300, seed=seed), [9])[0].indices for seed in (0, 1))
    found = mknn.permutation_baseline(first, second, permutations=25, seed=3)
    rng = np.random.default_rng(3)
    for value in found:
        order = rng.permutation(300)
        relabelled = np.argsort(order)[second[order]]
        assert value == pytest.approx(mknn.mean_overlap(first, relabelled.astype(np.int32)))


@pytest.mark.parametrize("name", LINEAR_METRICS)
def test_blocks_and_float32_do_not_change_a_metric(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    z1, z2 = clumps(200), clumps(200)[:, :5] + clumps(200, 5, seed=1)
    order = np.random.default_rng(2).permutation(200)
    whole = statistic(z1, z2, name)
    monkeypatch.setattr(moments, "_BLOCK_ROWS", 32)
    monkeypatch.setattr(moments, "MANY_SOURCES", 100)
    blocks = statistic(z1, z2, name)
    assert blocks.paired(None) == pytest.approx(whole.paired(None), abs=1e-12)
    assert blocks.paired(order) == pytest.approx(whole.paired(order), abs=1e-5)


@pytest.mark.parametrize("name", ["cka", "procrustes", "svcca", "unbiased-cka", "linear-r2"])
def test_an_outlier_that_is_left_out_takes_no_digits_with_it(name: str) -> None:
    z1, z2 = clumps(60).astype(np.float64), clumps(60, seed=1).astype(np.float64)
    outlier = np.arange(60) == 30
    far1, far2 = (np.where(outlier[:, None], 1e9, z) for z in (z1, z2))
    found = statistic(far1, far2, name).without(outlier)
    if name == "linear-r2":
        folds = (np.arange(60) % 5)[~outlier]
        rows = moments.PairedRows(z1[~outlier], z2[~outlier], folds=folds)
        expected = LINEAR_METRICS[name](rows.paired(None))
    else:
        expected = statistic(z1[~outlier], z2[~outlier], name).paired(None)
    assert found == pytest.approx(expected, abs=1e-9)


def test_fewer_random_pairings_where_each_is_costly() -> None:
    assert [default_permutations(n) for n in (19_999, 20_000)] == [200, 39]


def shares(found: Array, expected: Array) -> float:
    pairs = zip(found, expected, strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))


@pytest.mark.parametrize("wanted", [0.7, 1.0])
def test_approximate_neighbours_are_as_near_as_they_say(wanted: float) -> None:
    z = clumps(3000)
    search = ApproximateSearch(wanted)
    (five, ten) = search(z, [5, 10])
    (exact,) = neighbours_for(z, [10])
    (said,) = search.recalls
    assert said.recall >= wanted
    assert (said.k, said.sample) == (10, 1000)
    assert said.searched <= said.cells == 3000 // 39
    assert shares(ten.indices, exact.indices) == pytest.approx(said.recall, abs=0.03)
    assert np.array_equal(five.indices, ten.indices[:, :5])
    assert not (ten.indices == np.arange(3000)[:, None]).any()
    same = ten.indices == exact.indices
    assert ten.distances[same] == pytest.approx(exact.distances[same], abs=1e-6)


def test_a_cell_with_too_few_rows_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "_LEAST_A_CELL", 1)
    z = np.repeat(np.eye(8, dtype=np.float32), 5, axis=0)
    z += 1e-3 * clumps(40)
    (found,) = ApproximateSearch(0.5)(z, [20])
    (exact,) = neighbours_for(z, [20])
    assert (found.indices >= 0).all()
    assert np.isfinite(found.distances).all()
    assert shares(found.indices[:, :4], exact.indices[:, :4]) == 1


def save(folder: Path, n: int) -> list[str]:
    paths = [str(folder / name) for name in ("a.npy", "b.npy")]
    for seed, path in enumerate(paths):
        np.save(path, clumps(n) + 0.5 * clumps(n, seed=seed + 1))
    return paths


def test_the_command_says_how_many_neighbours_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = save(tmp_path, 800)
    options = ["-k", "10", "--metric", "mutual-knn", "--permutations", "5"]
    assert run(["score", *files, *options, "--json"]) == 0
    exact = json.loads(capsys.readouterr().out)
    assert exact["approximate"] == []
    assert run(["score", *files, *options, "--json", "--approximate", "0.95"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["wanted"] for each in found["approximate"]] == [0.95, 0.95]
    assert found["scores"][0]["mknn"] == pytest.approx(exact["scores"][0]["mknn"], abs=0.05)
    assert found["metrics"][0]["value"] == pytest.approx(found["scores"][0]["mknn"])
    assert run(["score", *files, *options, "--approximate", "1"]) == 0
    assert "1.0000 of the 22 nearest found, on 800 sources." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--approximate", "0.9", "--float64"], "leave out --float64"),
        (["--approximate", "0.2"], "0.2 is not in the range 0.5<=x<=1"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(["score", *save(tmp_path, 60), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_without_faiss_the_error_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approximate, "find_spec", lambda name: None)
    assert run(["score", *save(tmp_path, 60), "--approximate", "0.9"]) == 2
    assert 'pip install "vim-embed[approximate]"' in capsys.readouterr().err
