"""Neighbours' agreement in a property: against slow formulas, its null, and the command."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Table
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors  # type: ignore[import-untyped]

from vim_embed_client.cli.main import run
from vim_embed_client.figures.columns import read_column
from vim_embed_client.scoring.catalogue_property import (
    mean_difference,
    property_agreement,
    same_class,
)
from vim_embed_client.scoring.embedding_files import read_embeddings

Array = NDArray[Any]


def sky(n: int = 80) -> tuple[Array, Array]:
    """Embeddings whose first axis follows a redshift."""
    rng = np.random.default_rng(0)
    z = rng.gamma(2, size=n)
    return np.stack([z, *rng.normal(size=(2, n)), np.ones(n)], axis=1), z


def lists(embeddings: Array, k: int) -> Array:
    found = NearestNeighbors(n_neighbors=k, metric="cosine").fit(embeddings)
    indices: Array = found.kneighbors(return_distance=False)
    return indices


def test_the_means_of_all_pairs() -> None:
    _, z = sky(30)
    pairs = list(combinations(range(30), 2))
    assert mean_difference(z) == pytest.approx(np.mean([abs(z[i] - z[j]) for i, j in pairs]))
    classes = np.array(["a", "b", "c", "a", "a", "b"])
    alike = [classes[i] == classes[j] for i, j in combinations(range(6), 2)]
    assert same_class(classes) == pytest.approx(np.mean(alike))


def test_numbers_and_classes_by_their_definitions() -> None:
    embeddings, z = sky()
    near = lists(embeddings, 5)
    found = property_agreement(embeddings, z, k=5)
    expected = 1 - np.abs(z[near] - z[:, None]).mean() / mean_difference(z)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.p_value == pytest.approx(1 / 201)
    assert found.low < found.value < found.high
    kinds = np.where(z > 2, "far", "near")
    share = (kinds[near] == kinds[:, None]).mean()
    kappa = (share - same_class(kinds)) / (1 - same_class(kinds))
    assert property_agreement(embeddings, kinds, k=5).value == pytest.approx(kappa, abs=1e-12)


def test_an_unrelated_property_is_at_chance() -> None:
    rng = np.random.default_rng(1)
    found = [
        property_agreement(rng.normal(size=(60, 4)), rng.normal(size=60), permutations=39, k=5)
        for _ in range(60)
    ]
    assert np.mean([each.value for each in found]) == pytest.approx(0, abs=0.02)
    assert np.mean([each.p_value <= 0.05 for each in found]) <= 0.13


def test_sources_without_a_value_are_left_out() -> None:
    embeddings, z = sky()
    gaps = z.copy()
    gaps[::3] = np.nan
    kept = ~np.isnan(gaps)
    found = property_agreement(embeddings, gaps)
    assert found.n == kept.sum()
    assert found.value == property_agreement(embeddings[kept], z[kept]).value


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.ones(80), "fewer than two different values"), (np.ones(79), "80 rows and 79 values")],
)
def test_what_cannot_be_measured_is_refused(values: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        property_agreement(sky()[0], values)


def test_the_command_reads_a_catalogue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embeddings, z = sky()
    ids = [f"s{row}" for row in range(80)]
    path = tmp_path / "a.npz"
    np.savez(path, embedding=embeddings, ids=np.array(ids))
    Table({"id": ids[::-1], "z": z[::-1]}).write(tmp_path / "c.fits")
    arguments = ["score", str(path), str(path), "-k", "5", "--property", f"{tmp_path}/c.fits:z"]
    assert run([*arguments, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["metrics"]
    assert first == property_agreement(embeddings, z, k=5, name=f"z: {path}").as_dict()
    assert second["value"] == first["value"]
    (tmp_path / "c.csv").write_text("id,z\ns1,2\n")
    assert run([*arguments[:-1], f"{tmp_path}/c.csv:z"]) == 1
    assert "fewer than two different values" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["own-hubble", "a-field_with_a_very_long_name-of_a_survey"])
def test_headings_are_whole_in_80_columns(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    embeddings, z = sky()
    ids = [f"s{row}" for row in range(80)]
    np.savez(f"{name}.npz", embedding=embeddings, ids=np.array(ids))
    Table({"id": ids, "z": z}).write("c.fits")
    assert run(["score", *[f"{name}.npz"] * 2, "-k", "10", "--property", "c.fits:z"]) == 0
    printed = capsys.readouterr().out
    lines = printed[printed.rindex("┏") : printed.rindex("┘")].splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    heads = zip(*(line.split("┃")[1:-1] for line in lines if "┃" in line), strict=True)
    assert {len(line) for line in lines[:-1]} == {len(lines[0])}
    assert len(lines[0]) <= 80
    assert [" ".join(" ".join(head).split()) for head in heads] == [
        "metric", "k", "value", "95 % interval", "permuted, 95 %", "calibrated", "p",
    ]  # fmt: skip
    assert "".join(row[0] for row in cells) == f"z:{name}.npz" * 2


@pytest.mark.parametrize("kind", ["class", "number"])
def test_a_value_that_one_source_alone_has(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without it all others are alike: the agreement is known, its interval is not."""
    embeddings, _ = sky(60)
    values = np.array(["star", *["galaxy"] * 59]) if kind == "class" else np.eye(1, 60)[0]
    found = property_agreement(embeddings, values, k=5)
    assert -1 <= found.value <= 1
    assert not found.has_interval
    assert found.as_dict()["low"] is None
    path = tmp_path / "sky.npz"
    ids = [f"s{row}" for row in range(60)]
    np.savez(path, embedding=embeddings, ids=np.array(ids))
    Table({"id": ids, "kind": values}).write(tmp_path / "c.fits")
    arguments = ["score", str(path), str(path), "-k", "5", "--property", f"{tmp_path}/c.fits:kind"]
    assert run(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "No interval for kind" in said
    assert "all may be alike" in said


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0.1, -99.0, 0.3, -99.0], "2 values of z are -99, which count as numbers"),
        ([0.1, -99.9, -999.0, 21.0], "2 values of z are -999, -99.9,"),
        ([-80.0, -99.0, 0.3, -99.0], ""),  # such as temperatures
        ([0.1, 0.2, 0.3, 0.5], ""),
        (["a", "-99", "b", "c"], ""),
    ],
)
def test_numbers_that_stand_for_no_value_are_remarked(
    tmp_path: Path, values: list[float | str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(40, 4)).astype("f4"))
    rows = [str(values[row % 4]) if row < 4 else str(values[0]) for row in range(38)]
    (tmp_path / "c.csv").write_text("n,z\n" + "".join(f"0,{v}\n" for v in [*rows, *rows[-2:]]))
    column = read_column(f"{tmp_path}/c.csv:z", read_embeddings(str(tmp_path / "a.npy")))
    assert column.remark.startswith(told)
    assert bool(column.remark) == bool(told)
    if told:
        argument = f"{tmp_path}/c.csv:z"
        path, drawn = str(tmp_path / "a.npy"), str(tmp_path / "m.png")
        score = ["score", path, path, "-k", "5", "--by-row", "--property", argument]
        for command in (score, ["map", path, "--colour", argument, "-o", drawn]):
            assert run(command) == 0
            assert told in " ".join(capsys.readouterr().out.split())


def test_the_command_says_how_many_have_a_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embeddings, z = sky()
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", embeddings)
    column = [None if row % 4 == 0 else value for row, value in enumerate(z)]
    rows = ["z", *("" if value is None else str(value) for value in column)]
    (tmp_path / "cat.csv").write_text("n," + "\n0,".join(rows) + "\n")
    files = [str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]
    asked = [*files, "-k", "5", "--by-row", "--property", f"{tmp_path}/cat.csv:z"]
    assert run(["score", *asked]) == 0
    said = "z: 60 of 80 sources, joined row by row; 20 have none and are left out."
    assert said in " ".join(capsys.readouterr().out.split())
    assert run(["score", *asked, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["properties"]
    assert told == {"name": "z", "joined": "row by row", "without_value": 20}
