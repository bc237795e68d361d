"""MKNN: the number of platonic-universe, its baselines, and the `score` command."""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.data import hubble_deep_field
from sklearn.neighbors import NearestNeighbors  # type: ignore[import-untyped]

from support.embedding_files import write_embeddings
from vim_embed_client.cli.main import run
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.results import Provenance
from vim_embed_client.scoring import mknn as score_module
from vim_embed_client.scoring import neighbours as nearest_module
from vim_embed_client.scoring.embedding_files import EmbeddingFile, read_embeddings
from vim_embed_client.scoring.mknn import (
    chance,
    curve_ks,
    default_ks,
    jackknife_error,
    mknn,
    permutation_baseline,
    score,
    score_curve,
)
from vim_embed_client.scoring.neighbours import nearest_neighbours
from vim_embed_client.scoring.pairing import pair, usable_rows

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
    curve = score_curve(z1, z2, permutations=1)
    assert [s.mknn for s in curve] == [theirs(z1, z2, s.k) for s in curve]
    assert mknn(z1, z2) == mknn(z1, z2, 10) == theirs(z1, z2, 10)


def test_mknn_of_all_neighbours_is_one_and_a_larger_k_counts_as_that() -> None:
    z1, z2 = gaussian(np.float64)
    assert mknn(z1, z2, 299) == sklearn_mknn(z1, z2, 299) == 1
    assert mknn(z1, z2, 5000) == 1


def test_many_blocks_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    z1, z2 = gaussian(np.float64)
    whole = nearest_neighbours(z1, 10), mknn(z1, z2, 10)
    monkeypatch.setattr(nearest_module, "_BLOCK_BYTES", 8 * 300 * 64)
    monkeypatch.setattr(nearest_module, "_SELECT_BYTES", 8 * 300 * 24)
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
    curve = score_curve(z1, z2, [1, 10, 5, 40, 1000], permutations=50)
    assert [s.k for s in curve] == [1, 5, 10, 40, 299]
    assert [s.mknn for s in curve] == [mknn(z1, z2, s.k) for s in curve]
    assert all(s.permuted_low <= s.chance <= s.permuted_high for s in curve)
    assert curve[2] == score(z1, z2, 10, permutations=50)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_a_curve_s_numbers_are_the_definition_s_ties_and_all(case: Any, dtype: type) -> None:
    z1, z2 = case(dtype)
    curve = score_curve(z1, z2, [1, 2, 7, 30, 100], permutations=1)
    assert [s.mknn for s in curve] == [sklearn_mknn(z1, z2, s.k) for s in curve]


def without_each(z1: Array, z2: Array, k: int) -> Array:
    """MKNN with one source left out, for each source in turn."""
    rows = np.arange(len(z1))
    return np.array([mknn(z1[rows != j], z2[rows != j], k) for j in rows])


@pytest.mark.parametrize("k", [1, 5, 37])
def test_the_jackknife_is_that_of_leaving_out_each_source(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    z1, z2 = (z[:40, :8] for z in gaussian(np.float64))
    one, two = nearest_neighbours(z1, k + 1), nearest_neighbours(z2, k + 1)
    left = without_each(z1, z2, k)
    expected = np.sqrt(39 / 40 * np.square(left - left.mean()).sum())
    assert score(z1, z2, k).std_error == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(score_module, "_COMPARED_BYTES", 7 * k * k)
    lists = one[:, :k], two[:, :k], one, two
    assert jackknife_error(*lists) == pytest.approx(expected, rel=1e-9)


def simulated(rng: np.random.Generator) -> tuple[Array, Array]:
    """Two noisy views of the same 200 sources in five clumps."""
    centres = np.random.default_rng(0).normal(size=(5, 8))
    truth = 1.5 * centres[rng.integers(0, 5, 200)] + rng.normal(size=(200, 8))
    first, second = truth + 0.4 * rng.normal(size=(2, 200, 8))
    return first, second


def test_the_interval_covers_the_expected_score_of_new_sources() -> None:
    """In at least 95 % of draws; that of independent sources would do so in about 80 %."""
    rng = np.random.default_rng(1)
    draws = [score(*simulated(rng), 10, permutations=1) for _ in range(120)]
    values = np.array([s.mknn for s in draws])
    expected, spread = values.mean(), values.std()
    assert np.mean([s.low <= expected <= s.high for s in draws]) >= 0.95
    errors = np.array([s.std_error for s in draws])
    assert spread < errors.mean() < 2 * spread


@pytest.mark.parametrize("n", [2, 3, 16, 256, 50_000])
def test_the_ks_of_a_curve_are_possible(n: int) -> None:
    ks = curve_ks(n)
    assert ks[0] == 1
    assert ks == sorted(set(ks))
    assert ks[-1] <= min(100, n - 1)
    assert default_ks(n) == [k for k in (1, 2, 5, 10, 20, 50, 100) if k < n]


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
    write_embeddings(path, array, ids, provenance)
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
    with pytest.raises(ConfigurationError, match="has no array 'sky', but space, ground"):
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
    with pytest.raises(ConfigurationError, match="has no array 'z', but vim_tiny_hsc"):
        read_embeddings(f"{path}:z")


@pytest.mark.parametrize("name", ["missing.npy", "a.csv", "broken.npy", "broken.npz"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if not name.startswith("missing"):
        path.write_bytes(b"not an array")
    with pytest.raises((ConfigurationError, InputError), match=name):
        read_embeddings(str(path))


def named(ids: list[str] | None) -> EmbeddingFile:
    rows = np.arange(3.0 if ids is None else len(ids))
    return EmbeddingFile(label="", embeddings=rows[:, None], ids=ids)


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
    _, rows, _ = pair(named(first), named(second))
    assert rows.embeddings[:, 0].tolist() == order


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("abc", "abd", r"1 only in the first, 1 only in the second: c, d\): --common keeps the 2 "),
        ("abc", "xyz", r"b, x, y\): --by-row takes row i of both for the same source"),
        ("abc", "vwxyz", r"v, w\): embed them again with --id-column"),
        ("abc", "cxyz", r"x, y\): embed them again with --id-column"),
        ("abc", "abb", "the id b stands for several rows .* --by-row"),
        ("aac", "aca", "the id a stands for several rows .* --by-row"),
        ("abc", "abcc", "the id c stands for several rows .* or embed them again"),
        ("abc", "abcd", "0 only in the first, 1 only in the second: d"),
    ],
)
def test_other_ids_are_refused(first: str, second: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pair(named(list(first)), named(list(second)))


def test_sources_in_common_are_kept() -> None:
    one, two, _ = pair(named(["a", "b", "c", "d"]), named(["d", "x", "b"]), common=True)
    assert (one.ids, two.ids) == (["b", "d"], ["b", "d"])
    assert (one.embeddings[:, 0].tolist(), two.embeddings[:, 0].tolist()) == ([1, 3], [2, 0])
    with pytest.raises(InputError, match=r"a, c\): --by-row takes row i"):
        pair(named(["a", "b"]), named(["b", "c"]), common=True)
    with pytest.raises(InputError, match=r"3 and 2 rows, .* leave out --by-row") as told:
        pair(named(["a", "b", "c"]), named(["a", "b"]), by_row=True)
    assert "--common keeps the 2 sources" in str(told.value)
    with pytest.raises(InputError, match=r"3 and 2 rows, .* embed them again"):
        pair(named(["a", "b", "c"]), named(["x", "y"]), by_row=True)


def test_rows_without_a_direction_are_named_or_dropped() -> None:
    rows = np.arange(1.0, 11).reshape(5, 2)
    one = EmbeddingFile(label="one.npy", embeddings=rows.copy(), ids=list("abcde"))
    two = EmbeddingFile(label="two.npy", embeddings=rows.copy())
    assert usable_rows(one, two) == (one, two)
    one.embeddings[3] = 0
    two.embeddings[1, 1] = np.nan
    with pytest.raises(
        InputError, match=r"one.npy: 1 of 5 rows .* first is d \(zero\).*--drop-inv"
    ):
        usable_rows(one, two)
    with pytest.raises(InputError, match=r"two.npy: .* row 1 \(null or not finite\)"):
        usable_rows(two)
    kept, other = usable_rows(one, two, drop=True)
    assert kept.ids == ["a", "c", "e"]
    np.testing.assert_array_equal(other.embeddings, rows[[0, 2, 4]])
    one.embeddings[:4] = 0
    with pytest.raises(InputError, match="1 usable rows are left"):
        usable_rows(one, two, drop=True)


@pytest.mark.parametrize("array", [np.ones(3), np.ones((0, 4)), np.array([["a", "b"]])])
def test_what_is_no_set_of_embeddings_is_refused(tmp_path: Path, array: Array) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=r"a.npy holds .* of shape \(n, d\)"):
        read_embeddings(str(tmp_path / "a.npy"))


def test_the_command_prints_the_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z1, z2 = (z[:110] for z in gaussian(np.float32))
    ids = [f"{i}" for i in range(110)]
    first = write(tmp_path / "a.npy", z1, ids)
    second = write(tmp_path / "b.safetensors", z2[::-1], ids[::-1], random=True)
    assert run(["score", first, second, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [s["k"] for s in printed["scores"]] == [1, 2, 5, 10, 20, 50, 100]
    assert printed["scores"][3]["mknn"] == mknn(z1, z2, 10)
    assert printed["random_weights"] is True
    assert [about["file"] for about in printed["files"]] == [first, second]
    assert "Efron and Stein" in printed["method"]["interval"]
    assert run(["score", first, second, "--by-row", "-k", "10,109"]) == 0
    text = capsys.readouterr().out
    assert "RANDOM WEIGHTS" in text
    assert f"│ * 10 │ {mknn(z1, z2[::-1], 10):.4f}" in text
    assert "* k = 10: the number that platonic-universe gives" in text
    assert "leaves out one source at a time" in text
    assert run(["score", first, second, "--by-row", "-k", "5", "--metric", "mutual-knn"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "*" not in text
    assert "a twentieth of the sources at a time, so that it differs a little" in text


def test_float64_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z1, z2 = (z.round(3) for z in nearly_parallel(np.float32))
    names = [str(tmp_path / name) for name in ("a.npy", "b.npy")]
    for name, z in zip(names, (z1, z2), strict=True):
        np.save(name, z)
    found = []
    for flags in ([], ["--float64"]):
        assert run(["score", *names, "-k", "10", "--json", *flags]) == 0
        found.append(json.loads(capsys.readouterr().out)["scores"][0]["mknn"])
    assert found == [mknn(z1, z2), mknn(z1.astype(np.float64), z2.astype(np.float64))]
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["-k", "300"], 1, "there are 300: ask for -k 299 or less"),
        (["-k", "ten"], 2, "'ten' is not of the form 10 or 1,5,10"),
        (["-k", "0,5"], 2, "k must be at least 1"),
        (["--figure", "curve.txt"], 2, "does not end in one of .png"),
        (["--figure", "/nowhere/curve.png"], 2, "no folder /nowhere: make it first"),
    ],
)
def test_the_command_names_the_fix(
    tmp_path: Path, capsys: Any, flags: list[str], code: int, message: str
) -> None:
    first = write(tmp_path / "a.npy", gaussian(np.float32)[0], [f"{i}" for i in range(300)])
    assert run(["score", first, first, *flags]) == code
    assert message in capsys.readouterr().err


def test_the_command_refuses_files_of_other_lengths(tmp_path: Path, capsys: Any) -> None:
    for name, rows in (("a.npy", 3), ("b.npy", 4)):
        np.save(tmp_path / name, np.ones((rows, 2)))
    assert run(["score", str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]) == 1
    assert "3 and 4 rows" in capsys.readouterr().err


MEASURED = """
import resource, sys
import numpy as np
from vim_embed_client.scoring import neighbours as nearest
from vim_embed_client.scoring.mknn import score_curve
n, bound = map(int, sys.argv[1:])
nearest._BLOCK_BYTES = min(nearest._BLOCK_BYTES, bound * 2**20)
nearest._SELECT_BYTES = min(nearest._SELECT_BYTES, bound * 2**18)
z = np.random.default_rng(0).normal(size=(2, n, 16)).astype(np.float32)
score_curve(*z[:, :500], permutations=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scores = score_curve(*z, permutations=2)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, scores[-1].mknn)
"""


@pytest.mark.parametrize(
    ("n", "block", "most"),
    [
        (5000, 16, 70),
        pytest.param(
            100_000, 1024, 1536, marks=[pytest.mark.soak, pytest.mark.timeout(3600)], id="soak"
        ),
    ],
)
def test_memory_is_bounded(n: int, block: int, most: int) -> None:
    """In MiB. All distances at once would be 95 for 5,000 rows in float32, 38,000 for 100,000."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(n), str(block)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    mebibytes, value = map(float, done.stdout.split())
    assert mebibytes < most
    assert value == pytest.approx(100 / (n - 1), rel=0.2)
