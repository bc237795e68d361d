"""Files and rows as people really have them: read as what they are, or refused by name.

Each table is extended by a line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from vim_embed_client.cli.main import run
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.scoring.embedding_files import EmbeddingFile, read_embeddings
from vim_embed_client.scoring.mknn import mknn, score
from vim_embed_client.scoring.pairing import pair, usable_rows
from vim_embed_client.scoring.repeats import find_repeats, without_repeats

Array = NDArray[Any]
NAN = float("nan")
ROWS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
GOOD = np.array(ROWS, np.float32)
VECTORS = pa.array(ROWS, pa.list_(pa.float32()))
TENSORS = pa.ExtensionArray.from_storage(
    pa.fixed_shape_tensor(pa.float32(), [2]), VECTORS.cast(pa.list_(pa.float32(), 2))
)
ROW_TENSORS = pa.ExtensionArray.from_storage(
    pa.fixed_shape_tensor(pa.float32(), [1, 2]), VECTORS.cast(pa.list_(pa.float32(), 2))
)
IMAGES = pa.ExtensionArray.from_storage(
    pa.fixed_shape_tensor(pa.float32(), [2, 2]),
    pa.array(np.ones((3, 4), np.float32).tolist(), pa.list_(pa.float32(), 4)),
)
STRUCTS = pa.array([{"x": [1.0], "y": 2}] * 3)

READ: dict[str, tuple[dict[str, Any], Any]] = {
    "a struct beside": ({"embedding": VECTORS, "meta": STRUCTS}, ROWS),
    "a struct first, no name": ({"meta": STRUCTS, "vector": VECTORS}, ROWS),
    "texts and lists of texts beside": ({"v": VECTORS, "t": [["a"], ["b"], []]}, ROWS),
    "fixed-size lists": ({"embedding": VECTORS.cast(pa.list_(pa.float32(), 2))}, ROWS),
    "large lists": ({"embedding": VECTORS.cast(pa.large_list(pa.float32()))}, ROWS),
    "float16": ({"embedding": VECTORS.cast(pa.list_(pa.float16()))}, ROWS),
    "whole numbers": ({"embedding": VECTORS.cast(pa.list_(pa.int8()))}, ROWS),
    "tensors": ({"embedding": TENSORS}, ROWS),
    "tensors of one row": ({"embedding": ROW_TENSORS}, ROWS),
    "lists of one list": ({"embedding": [[row] for row in ROWS]}, ROWS),
    "several chunks": ({"embedding": pa.chunked_array([VECTORS[:1], VECTORS[1:]])}, ROWS),
    "a null row": ({"embedding": [ROWS[0], None, ROWS[2]]}, [ROWS[0], [NAN, NAN], ROWS[2]]),
    "a null row of a fixed size": (
        {"embedding": pa.array([None, *ROWS[1:]], pa.list_(pa.float32(), 2))},
        [[NAN, NAN], *ROWS[1:]],
    ),
    "a null number": ({"embedding": [[1.0, None], *ROWS[1:]]}, [[1.0, NAN], *ROWS[1:]]),
    "ragged lists beside": ({"embedding": VECTORS, "flux": [[1.0], [], [2.0, 3.0]]}, ROWS),
}


@pytest.mark.parametrize("case", READ)
def test_a_column_is_read_as_what_it_is(tmp_path: Path, case: str) -> None:
    columns, expected = READ[case]
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
    try:
        pq.read_table(tmp_path / "a.parquet")
    except pa.ArrowInvalid as error:
        pytest.skip(f"this pyarrow cannot read what it wrote: {error}")
    found = read_embeddings(str(tmp_path / "a.parquet"))
    np.testing.assert_array_equal(found.embeddings, np.array(expected))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unequal, total divisible": (
        {"embedding": [[1.0, 2], [3.0], [4.0, 5, 6]]},
        r"column embedding: 2 rows \(1, 2\) have 1 numbers where row 0 has 2",
    ),
    "an empty list": ({"v": [[1.0, 2], [3.0, 4], []]}, "row 2 has 0 numbers where row 0 has 2"),
    "unequal after a null": ({"v": [None, [1.0, 2], [3.0]]}, "row 2 has 1 numbers where row 1"),
    "only nulls": ({"v": pa.array([None] * 3, pa.list_(pa.float32()))}, "no row has an embedding"),
    "images": ({"embedding": IMAGES}, r"tensors of shape \(2, 2\): an embedding is one vector"),
    "lists of lists": ({"embedding": [[[1.0, 2], [3.0, 4]]] * 3}, "lists of lists"),
    "no vectors": ({"z": [1.0], "s": [{"x": 1}]}, r"no column of vectors, but z \(double\), s"),
    "numbers that are texts": ({"embedding": [["1", "2"]]}, "no column of vectors"),
    "a null id": ({"id": ["a", None, "c"], "v": VECTORS}, r"a.parquet: row 1 has no id \(null\)"),
    "ids that are lists": ({"id": [[1], [2], [3]], "v": VECTORS}, "an id is one value, not"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_column_that_cannot_be_read_names_the_rows(tmp_path: Path, case: str) -> None:
    columns, message = REFUSED[case]
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises((InputError, ConfigurationError), match=message):
        read_embeddings(str(tmp_path / "a.parquet"))


IDS: list[tuple[Any, list[str]]] = [
    (pa.array([b"1", b"x.png", "ä".encode()]), ["1", "x.png", "ä"]),
    (pa.array([b"\xff.png", b"\xfe.png", b"c"]), ["\\xff.png", "\\xfe.png", "c"]),
    (pa.array(["a", "b", "c"]).dictionary_encode(), ["a", "b", "c"]),
    (pa.array(["a", "b", "c"], pa.large_string()), ["a", "b", "c"]),
    (pa.array([2**60 + 1, 7, -1]), [str(2**60 + 1), "7", "-1"]),
    (pa.array([1.0, 7.0, 1.5]), ["1", "7", "1.5"]),
]


@pytest.mark.parametrize(("ids", "expected"), IDS)
def test_an_id_is_the_value_itself(tmp_path: Path, ids: Any, expected: list[str]) -> None:
    pq.write_table(pa.table({"id": ids, "embedding": VECTORS}), tmp_path / "a.parquet")
    assert read_embeddings(str(tmp_path / "a.parquet")).ids == expected


def test_ids_of_an_npz_may_be_bytes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", embedding=GOOD, ids=np.array([b"1", b"2", b"10"]))
    assert read_embeddings(str(tmp_path / "a.npz")).ids == ["1", "2", "10"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [(["a", None, None], r"2 rows \(1, 2\) have no id"), (["a", "b"], "3 rows and 2 ids")],
)
def test_a_sidecar_s_ids_are_checked(tmp_path: Path, ids: Any, message: str) -> None:
    np.save(tmp_path / "a.npy", GOOD)
    (tmp_path / "a.npy.json").write_text(json.dumps({"ids": ids}))
    with pytest.raises(InputError, match=message):
        read_embeddings(str(tmp_path / "a.npy"))
    assert read_embeddings(str(tmp_path / "a.npy"), by_row=True).ids is None


def named(ids: Sequence[str]) -> EmbeddingFile:
    rows = np.arange(1.0, 1 + len(ids))
    return EmbeddingFile(label="", embeddings=rows[:, None], ids=list(ids))


PAIRED: list[tuple[list[str], list[str], str]] = [
    (["a/x.fits", "a/y.fits"], ["b/y.jpg", "b/x.jpg"], "without folder and ending"),
    (["x.fits.gz", "y.fits.fz"], ["d/y.png", "d/x.png"], "without folder and ending"),
    (["x", "y"], ["y.jpg", "x.jpg"], "without folder and ending"),
    (["s.fits#0", "s.fits#1"], ["s.npy#1", "s.npy#0"], "below the folder"),
    (["s.fits#0", "t.fits#0"], ["t.npy#0", "s.npy#0"], "without folder and ending"),
    (["J12+56.7", "J12+56.8"], ["q/J12+56.8.png", "q/J12+56.7.png"], "without folder and ending"),
    (["a/x.fits", "a/y.fits"], ["b/y.fits", "b/x.fits"], "below the folder"),
    (["x.fits", "y.fits"], ["y.fits", "x.fits"], "by id"),
]


@pytest.mark.parametrize(("first", "second", "how"), PAIRED)
def test_names_of_one_source_are_paired_and_it_is_said_how(
    first: list[str], second: list[str], how: str
) -> None:
    paired = pair(named(first), named(second))
    assert paired.second.embeddings[:, 0].tolist() == [2, 1]
    assert how in paired.how


@pytest.mark.parametrize("second", [["x.fits", "x.jpg", "y.jpg"], ["y.png", "x.png", "x.png"]])
def test_an_id_of_several_rows_is_refused_with_the_rows(second: list[str]) -> None:
    with pytest.raises(InputError, match=r"the id x.* stands for several rows \((0|1), (1|2)\)"):
        pair(named(["x.fit", "y.fit", "z.fit"]), named(second))
    twice = named([*second, second[-1]])
    with pytest.raises(InputError, match="several rows"):
        pair(twice, twice)
    assert pair(twice, twice, by_row=True).how == "by row"


def simulated(n: int = 60, d: int = 16) -> tuple[Array, Array]:
    rng = np.random.default_rng(5)
    z = rng.normal(size=(n, d))
    return z.astype(np.float32), (z + 0.5 * rng.normal(size=(n, d))).astype(np.float32)


LENGTHS: list[tuple[type, float]] = [
    (np.float32, 1e20),
    (np.float32, 1e38),
    (np.float32, 1e-8),
    (np.float32, 1e-30),
    (np.float64, 1e200),
    (np.float64, 1e-200),
    (np.float64, 1e-18),
]


@pytest.mark.parametrize(("dtype", "length"), LENGTHS)
@pytest.mark.parametrize("rows", [slice(None), slice(0, None, 3)])
def test_the_length_of_rows_does_not_matter(dtype: Any, length: float, rows: slice) -> None:
    z1, z2 = (z.astype(dtype) for z in simulated())
    other = z1.copy()
    with np.errstate(over="ignore", under="ignore"):
        other[rows] *= dtype(length)
    assert np.isfinite(other).all()
    assert mknn(other, z2) == mknn(z1, z2)


def repeated(z: Array, rows: Sequence[int]) -> Array:
    z = z.copy()
    z[list(rows)] = z[rows[0]]
    return z


def test_identical_rows_are_found() -> None:
    z = repeated(repeated(simulated()[0], [3, 8, 50]), [1, 2])
    z[20] = 0.0
    z[21] = -0.0
    found = find_repeats(z)
    assert (found.rows, found.groups, found.largest()) == (7, 3, [3, 8, 50])
    assert np.flatnonzero(found.extra).tolist() == [2, 8, 21, 50]
    assert find_repeats(simulated()[0]).largest() == []


def files_of(*arrays: Array) -> tuple[EmbeddingFile, ...]:
    ids = [f"{row}.png" for row in range(len(arrays[0]))]
    return tuple(EmbeddingFile(label="a", embeddings=z, ids=ids) for z in arrays)


def test_sources_without_their_repeats() -> None:
    z1, z2 = simulated()
    files = files_of(repeated(z1, range(0, 20)), repeated(z2, range(10, 30)))
    one, two = without_repeats(files)
    assert one.ids == two.ids == [f"{row}.png" for row in [0, *range(30, 60)]]
    clean = files_of(z1, z2)
    assert without_repeats(clean) is clean


def test_unrelated_files_agree_through_identical_rows_and_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(6)
    drawn: Array = rng.normal(size=(2, 300, 16)).astype(np.float32)
    z1, z2 = (repeated(z, range(40)) for z in drawn)
    paths = [str(tmp_path / name) for name in ("a.npy", "b.npy")]
    for path, z in zip(paths, (z1, z2), strict=True):
        np.save(path, z)
    assert run(["score", *paths, "-k", "10", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(f["rows"], f["groups"]) for f in printed["identical_rows"]] == [(40, 1)] * 2
    assert printed["scores"][0]["p_value"] < 0.05
    assert printed["scores"][0]["tied"] == pytest.approx(50 / 300)  # 10 more end in the group
    (without,) = printed["without_identical_rows"]["scores"]
    assert printed["without_identical_rows"]["n"] == without["n"] == 261
    kept = [0, *range(40, 300)]
    assert without["mknn"] == mknn(z1[kept], z2[kept], 10)
    assert without["p_value"] > 0.05
    assert run(["score", *paths, "-k", "10"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "40 rows equal another one bit for bit, in 1 group: row 0, row 1, row 2, …" in text
    assert "Without them (the first of each group stays), 261 sources:" in text
    assert "Ties: up to 16.7%" in text


@pytest.mark.parametrize("n", [2, 3, 9])
def test_too_few_sources_have_no_interval(tmp_path: Path, capsys: Any, n: int) -> None:
    np.save(tmp_path / "a.npy", simulated(n)[0])
    path = str(tmp_path / "a.npy")
    assert run(["score", path, path, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert all(s["low"] is s["high"] is s["std_error"] is None for s in scores)
    assert run(["score", path, path]) == 0
    text = capsys.readouterr().out
    assert f"{n} sources are too few for an interval" in " ".join(text.split())
    assert "│ none" in text
    assert "1.0000 to 1.0000" not in text


def test_where_all_others_are_neighbours_there_is_no_interval() -> None:
    result = score(*simulated(20), 19)
    assert (result.mknn, result.has_interval, result.tied) == (1, False, 0)
    assert not score(*simulated(20), 18).has_interval
    assert score(*simulated(20), 17).has_interval


def collapsed(z: Array) -> Array:
    return np.ones_like(z)


def constant_columns(z: Array) -> Array:
    return np.concatenate([z, np.full((len(z), 3), 7, z.dtype)], axis=1)


DEGENERATE: list[tuple[Callable[[Array], Array], float, int]] = [
    (collapsed, 1.0, 1),
    (constant_columns, 0.0, 60),
    (lambda z: np.sign(z[:, :2]), 1.0, 4),  # four directions only
]


@pytest.mark.parametrize(("make", "tied", "left"), DEGENERATE)
def test_ties_are_counted(make: Callable[[Array], Array], tied: float, left: int) -> None:
    z, _ = simulated()
    made = make(z)
    assert score(made, made, 5).tied == tied
    assert len(without_repeats(files_of(made))[0]) == left


def test_a_collapsed_model_is_named(tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "a.npy", np.ones((30, 4), np.float32))
    path = str(tmp_path / "a.npy")
    assert run(["score", path, path]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Ties: up to 100.0%" in text
    assert "Without them, 1 sources are left: too few to score." in text


def test_a_null_row_is_named_or_dropped(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b", "c"], "embedding": [ROWS[0], None, ROWS[2]]})
    pq.write_table(table, tmp_path / "a.parquet")
    file = read_embeddings(str(tmp_path / "a.parquet"))
    with pytest.raises(InputError, match=r"the first is b \(null or not finite\)"):
        usable_rows(file)
    assert usable_rows(file, drop=True)[0].ids == ["a", "c"]
