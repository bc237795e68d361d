"""MKNN: the number of platonic-universe, its baselines, and the `score` command."""

from __future__ import annotations

import importlib
import json
import runpy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.data import hubble_deep_field
from sklearn.neighbors import NearestNeighbors  # type: ignore[import-untyped]

from vim_embed_client import score as score_module
from vim_embed_client.cli import run
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.outputs import Contents, write_output
from vim_embed_client.results import Provenance
from vim_embed_client.score import (
    chance,
    curve_ks,
    mknn,
    mknn_curve,
    nearest_neighbours,
    permutation_baseline,
    score,
)
from vim_embed_client.score_files import EmbeddingFile, pair, read_embeddings

Array = NDArray[Any]
Mknn = Callable[[Array, Array, int], float]


def sklearn_mknn(z1: Array, z2: Array, k: int) -> float:
    """platonic-universe's definition, word by word."""
    lists = [
        NearestNeighbors(n_neighbors=k, metric="cosine").fit(z).kneighbors(return_distance=False)
        for z in (z1, z2)
    ]
    overlap = [len(set(a).intersection(b)) for a, b in zip(*lists, strict=True)]
    return float(np.mean(overlap) / k)


def pu_mknn() -> Mknn:
    """The function of the installed platonic-universe, without the rest of the package."""
    spec = find_spec("pu")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("platonic-universe is not installed")
    release = Path(spec.submodule_search_locations[0]) / "metrics.py"
    if release.exists():
        found: Mknn = runpy.run_path(str(release))["mknn"]
        return found
    head: Mknn = importlib.import_module("pu.metrics").mknn
    return head


def gaussian(dtype: type) -> tuple[Array, Array]:
    rng = np.random.default_rng(1)
    z1 = rng.normal(size=(300, 64))
    return z1.astype(dtype), (z1 + rng.normal(size=z1.shape)).astype(dtype)


def nearly_parallel(dtype: type) -> tuple[Array, Array]:
    """Like mean-pooled tokens: cosines so near 1 that float32 distances coincide."""
    rng = np.random.default_rng(2)
    z1 = 1 + 0.002 * rng.normal(size=(300, 192))
    return z1.astype(dtype), (z1 + 0.001 * rng.normal(size=z1.shape)).astype(dtype)


def duplicates_and_zeros(dtype: type) -> tuple[Array, Array]:
    z1, z2 = gaussian(dtype)
    z1[20:60], z2[20:45] = z1[20], z2[20]
    z1[[3, 70]], z2[[5, 70]] = 0, 0
    return z1, z2


def patches_of_the_sky(dtype: type) -> tuple[Array, Array]:
    """Real numbers: patches of a Hubble picture, and the same at half the resolution."""
    blocks = hubble_deep_field()[:864, :992].reshape(54, 16, 62, 16, 3).swapaxes(1, 2)
    rows = blocks.reshape(-1, 16, 16, 3)[::5]
    coarse = rows.reshape(-1, 8, 2, 8, 2, 3).mean(axis=(2, 4))
    return rows.reshape(len(rows), -1).astype(dtype), coarse.reshape(len(rows), -1).astype(dtype)


CASES = [gaussian, nearly_parallel, duplicates_and_zeros, patches_of_the_sky]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [1, 10, 99])
def test_mknn_is_the_number_of_the_definition(case: Any, dtype: type, k: int) -> None:
    z1, z2 = case(dtype)
    assert mknn(z1, z2, k) == sklearn_mknn(z1, z2, k)


@pytest.mark.parametrize("case", CASES)
def test_mknn_is_the_number_of_platonic_universe(case: Any) -> None:
    theirs = pu_mknn()
    z1, z2 = case(np.float64)
    assert mknn(z1, z2, 10) == theirs(z1, z2, 10)


def test_mknn_of_all_neighbours_is_one_and_a_larger_k_counts_as_that() -> None:
    z1, z2 = gaussian(np.float64)
    assert mknn(z1, z2, 299) == sklearn_mknn(z1, z2, 299) == 1
    assert mknn(z1, z2, 5000) == 1


def test_many_blocks_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    z1, z2 = gaussian(np.float64)
    whole = nearest_neighbours(z1, 10), mknn(z1, z2, 10)
    monkeypatch.setattr(score_module, "_BLOCK_BYTES", 8 * 300 * 64)
    monkeypatch.setattr(score_module, "_SELECT_ROWS", 24)
    np.testing.assert_array_equal(nearest_neighbours(z1, 10), whole[0])
    assert mknn(z1, z2, 10) == whole[1]


def test_neighbours_come_nearest_first_and_leave_the_row_out() -> None:
    z, _ = gaussian(np.float64)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -2)
    expected = np.argsort(-similarity, axis=1)[:, :7]
    np.testing.assert_array_equal(nearest_neighbours(z, 7), expected)


def test_the_curve_has_the_score_at_each_k() -> None:
    z1, z2 = nearly_parallel(np.float32)
    curve = mknn_curve(z1, z2, [1, 10, 5, 40, 1000], permutations=50)
    assert curve.ks.tolist() == [1, 5, 10, 40, 299]
    assert curve.mknn.tolist() == [mknn(z1, z2, k) for k in curve.ks]
    assert (curve.low <= curve.chance).all()
    assert (curve.chance <= curve.high).all()


@pytest.mark.parametrize("n", [2, 3, 16, 256, 50_000])
def test_the_ks_of_a_curve_are_possible(n: int) -> None:
    ks = curve_ks(n)
    assert ks[0] == 1
    assert ks == sorted(set(ks))
    assert ks[-1] <= min(100, n - 1)


def test_permutations_surround_chance() -> None:
    z1, z2 = gaussian(np.float64)
    lists = nearest_neighbours(z1, 10), nearest_neighbours(z2, 10)
    scores = permutation_baseline(*lists, permutations=400)
    assert scores.min() < chance(300, 10) < scores.max()
    assert abs(scores.mean() - chance(300, 10)) < 4 * scores.std() / 400**0.5
    assert scores.mean() + 5 * scores.std() < mknn(z1, z2, 10)


def test_a_permuted_list_is_that_of_the_permuted_embedding() -> None:
    z1, z2 = gaussian(np.float64)
    order = np.random.default_rng(3).permutation(300)
    lists = nearest_neighbours(z1, 10), nearest_neighbours(z2, 10)
    (permuted,) = permutation_baseline(*lists, permutations=1, seed=3)
    assert permuted == mknn(z1, z2[order], 10)


def test_a_score_of_unrelated_embeddings_is_not_significant() -> None:
    z1, z2 = np.random.default_rng(4).normal(size=(2, 200, 16))
    result = score(z1, z2, 10)
    assert result.low < result.chance < result.high
    assert result.p_value > 0.05
    assert result == score(z1, z2, 10)


def test_a_score_of_equal_embeddings_is_one() -> None:
    z, _ = gaussian(np.float32)
    result = score(z, z, 10)
    assert (result.mknn, result.low, result.high) == (1, 1, 1)
    assert result.p_value == pytest.approx(1 / 201)


@pytest.mark.parametrize(
    ("z1", "z2", "k", "message"),
    [
        (np.ones((4, 2)), np.ones((5, 2)), 1, "4 and 5 rows"),
        (np.ones(4), np.ones(4), 1, r"shape \(n, d\)"),
        (np.ones((1, 2)), np.ones((1, 2)), 1, "at least two sources"),
        (np.full((3, 2), np.nan), np.ones((3, 2)), 1, "3 rows are not finite"),
        (np.ones((4, 2)), np.ones((4, 2)), 0, "k must be at least 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(z1: Array, z2: Array, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mknn(z1, z2, k)


def write(path: Path, array: Array, ids: list[str], *, random: bool = False) -> str:
    provenance = Provenance(model="vim-tiny", random_weights=random)
    contents = Contents(
        rows=len(array),
        dim=array.shape[1],
        dtype=array.dtype,
        provenance=provenance,
        blocks=lambda: iter([(ids, array)]),
    )
    write_output(path, contents)
    return str(path)


@pytest.mark.parametrize("ending", [".npy", ".parquet", ".safetensors"])
def test_outputs_of_embed_are_read_back(tmp_path: Path, ending: str) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    array = gaussian(np.float32)[0]
    ids = [f"{i}.png" for i in range(300)]
    found = read_embeddings(write(tmp_path / f"a{ending}", array, ids, random=True))
    np.testing.assert_array_equal(found.embeddings, array)
    assert found.ids == ids
    assert found.random_weights
    assert found.model == "vim-tiny"


def test_an_array_of_many_is_chosen_by_name(tmp_path: Path) -> None:
    path = tmp_path / "both.npz"
    np.savez(path, space=np.ones((3, 2)), ground=np.zeros((3, 2)), ids=["a", "b", "c"])
    found = read_embeddings(f"{path}:ground")
    assert found.embeddings.sum() == 0
    assert found.ids == ["a", "b", "c"]
    with pytest.raises(ConfigurationError, match="space, ground: choose one with"):
        read_embeddings(str(path))
    with pytest.raises(ConfigurationError, match="has no 'sky', but space, ground"):
        read_embeddings(f"{path}:sky")


def test_a_table_of_platonic_universe_is_read_by_column(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = gaussian(np.float64)[0]
    path = tmp_path / "jwst_vim.parquet"
    parquet.write_table(pa.table({"vim_tiny_hsc": rows.tolist(), "z": rows[:, 0]}), path)
    found = read_embeddings(f"{path}:vim_tiny_hsc")
    np.testing.assert_array_equal(found.embeddings, rows)
    assert found.ids is None
    with pytest.raises(ConfigurationError, match="has no 'z', but vim_tiny_hsc"):
        read_embeddings(f"{path}:z")


@pytest.mark.parametrize("name", ["missing.npy", "a.csv", "broken.npy", "broken.npz"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if not name.startswith("missing"):
        path.write_bytes(b"not an array")
    with pytest.raises((ConfigurationError, InputError), match=name):
        read_embeddings(str(path))


def named(ids: list[str] | None) -> EmbeddingFile:
    return EmbeddingFile(label="", embeddings=np.arange(3.0)[:, None], ids=ids)


@pytest.mark.parametrize(
    ("first", "second", "order"),
    [
        (None, ["a", "b", "c"], [0, 1, 2]),
        (["a", "b", "c"], ["c", "a", "b"], [1, 2, 0]),
        (["hst/1.png", "hst/2.png", "hst/3.png"], ["x/3.png", "x/1.png", "x/2.png"], [1, 2, 0]),
        (["a.npy#0", "a.npy#1", "a.npy#2"], ["d/b.npy#1", "d/b.npy#0", "d/b.npy#2"], [1, 0, 2]),
        (["/a/1.png", "b/1.png", "c"], ["/a/1.png", "b/1.png", "c"], [0, 1, 2]),
    ],
)
def test_rows_are_paired_by_id(first: Any, second: Any, order: list[int]) -> None:
    _, rows = pair(named(first), named(second))
    assert rows[:, 0].tolist() == order


@pytest.mark.parametrize(
    ("first", "second"),
    [(["a", "b", "c"], ["a", "b", "d"]), (["a", "b", "c"], ["a", "b", "b"]), ("aac", "aca")],
)
def test_other_ids_are_refused(first: Any, second: Any) -> None:
    with pytest.raises(InputError, match="--by-row"):
        pair(named(list(first)), named(list(second)))


def test_the_command_prints_the_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z1, z2 = gaussian(np.float32)
    ids = [f"{i}" for i in range(300)]
    first = write(tmp_path / "a.npy", z1, ids)
    second = write(tmp_path / "b.safetensors", z2[::-1], ids[::-1], random=True)
    assert run(["score", first, second, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["mknn"] == mknn(z1, z2, 10)
    assert printed["random_weights"] is True
    assert run(["score", first, second, "--by-row", "-k", "400"]) == 0
    text = capsys.readouterr().out
    assert "RANDOM WEIGHTS" in text
    assert "k is 299" in text


def test_the_command_draws_the_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(tmp_path / "a.npy", gaussian(np.float32)[0], [f"{i}" for i in range(300)])
    figure = tmp_path / "curve.png"
    assert run(["score", first, first, "--figure", str(figure)]) == 0
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert run(["score", first, first, "--figure", "curve.txt"]) == 2
    assert "does not end in one of .png" in capsys.readouterr().err


def test_the_command_refuses_files_of_other_lengths(tmp_path: Path, capsys: Any) -> None:
    for name, rows in (("a.npy", 3), ("b.npy", 4)):
        np.save(tmp_path / name, np.ones((rows, 2)))
    assert run(["score", str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]) == 1
    assert "3 and 4 rows" in capsys.readouterr().err
