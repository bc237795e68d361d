"""Two surveys brought together by position or by a table of pairs, as right as the truth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from numpy.typing import NDArray

from support.embedding_files import write_embeddings
from vim_embed_client.cli.main import run
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.results import Provenance
from vim_embed_client.scoring.embedding_files import read_embeddings
from vim_embed_client.scoring.pairing import pair, pair_all
from vim_embed_client.sky.matching import mutual_matches

Array = NDArray[Any]
ENDINGS = [".npy", ".npz", ".parquet", ".safetensors"]


@dataclass(frozen=True)
class Field:
    """Two surveys of one field: truth[i] is the source that row i is, in each."""

    truth: tuple[Array, Array]
    places: tuple[tuple[Array, Array], tuple[Array, Array]]

    def wrong(self, first: Array, second: Array) -> int:
        return int((self.truth[0][first] != self.truth[1][second]).sum())

    @property
    def common(self) -> int:
        return len(np.intersect1d(*self.truth))


def simulated(ra: float, dec: float, *, seed: int = 1) -> Field:
    """1,000 sources in 4 x 4 arcmin, of which each survey has four fifths, to 0.15 arcsec."""
    rng = np.random.default_rng(seed)
    east, north = rng.uniform(-120, 120, (2, 1000))
    # No two of them so close that no survey could tell them apart.
    apart = np.hypot(east[:, None] - east, north[:, None] - north)
    alone = (apart + 9 * np.triu(np.ones_like(apart)) > 2.2).all(axis=1)
    east, north = east[alone], north[alone]
    truth, places = [], []
    for _ in range(2):
        seen = rng.permutation(len(east))[: len(east) * 4 // 5]
        scatter = rng.normal(0, 0.15, (2, len(seen)))
        up = dec + (north[seen] + scatter[0]) / 3600
        across = ra + (east[seen] + scatter[1]) / 3600 / np.cos(np.radians(up))
        truth.append(seen)
        places.append((across % 360, up))
    return Field((truth[0], truth[1]), (places[0], places[1]))


@pytest.mark.parametrize("centre", [(150.0, 2.0), (0.0, 0.0), (80.0, 88.0)])
def test_all_pairs_are_right_at_1_arcsec_and_the_wrong_ones_at_5_are_counted(
    centre: tuple[float, float],
) -> None:
    field = simulated(*centre)
    near = mutual_matches(*field.places, 1.0)
    assert field.wrong(near.first, near.second) == 0
    assert len(near.first) > 0.98 * field.common
    assert near.ambiguous == 0
    wide = mutual_matches(*field.places, 5.0)
    wrong = field.wrong(wide.first, wide.second)
    print(f"{len(near.first)} right pairs at 1 arcsec; at 5: {len(wide.first)}, {wrong} wrong")
    assert 0 < wrong < 0.1 * len(wide.first)
    assert wide.ambiguous > wrong


def survey(path: Path, field: Field, which: int) -> Path:
    """The embeddings of a survey: rows that agree between the surveys, with ids of its own."""
    truth = field.truth[which]
    rows = np.random.default_rng(0).normal(size=(1000, 8)).astype("f4")[truth]
    ra, dec = field.places[which]
    ids = [f"{'hst' if which else 'hsc'}/{'abc'[which]}{row}.fits" for row in range(len(truth))]
    columns = {"ra": ra.tolist(), "dec": dec.tolist(), "truth": truth.tolist()}
    write_embeddings(path, rows, ids, Provenance(model="m"), columns)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_are_paired_by_position(tmp_path: Path, ending: str) -> None:
    field = simulated(150, 2)
    files = [
        read_embeddings(str(survey(tmp_path / f"{which}{ending}", field, which)))
        for which in (0, 1)
    ]
    first, second, how = pair(*files, match=1.0)
    np.testing.assert_array_equal(first.embeddings, second.embeddings)
    lone = [len(file) - len(first) for file in files]
    assert how.startswith(f"by position within 1 arcsec: {len(first):,} pairs")
    assert f"{lone[0]} of {files[0].label} and {lone[1]} of {files[1].label} have no" in how
    # Rows that were left out before are no reason to mix up the others.
    some, others, _ = pair(files[0].take(np.arange(5, 300)), files[1], match=1.0)
    np.testing.assert_array_equal(some.embeddings, others.embeddings)
    three = pair_all([files[1], files[0], files[1]], match=1.0)
    np.testing.assert_array_equal(three[0].embeddings, three[1].embeddings)
    np.testing.assert_array_equal(three[0].embeddings, three[2].embeddings)


def _pairs(path: Path, field: Field, *, spelt: str) -> Path:
    """A table of the true pairs, in an order of its own; some of sources that are not there."""
    _, mine, theirs = np.intersect1d(*field.truth, return_indices=True)
    names = {
        "whole": ("hsc/a{}.fits", "hst/b{}.fits"),
        "without folder": ("a{}.fits", "b{}.fits"),
        "bare": ("a{}", "b{}"),
    }[spelt]
    true = zip(mine, theirs, strict=True)
    lines = [f"{names[0].format(one)},{names[1].format(other)}" for one, other in true]
    path.write_text("\n".join(["hsc,hst", *lines[::-1], "a99999,b99999", ","]))
    return path


@pytest.mark.parametrize("spelt", ["whole", "without folder", "bare"])
def test_files_are_paired_by_a_table(tmp_path: Path, spelt: str) -> None:
    field = simulated(150, 2)
    files = [
        read_embeddings(str(survey(tmp_path / f"{which}.parquet", field, which)))
        for which in (0, 1)
    ]
    table = _pairs(tmp_path / "pairs.csv", field, spelt=spelt)
    first, second, how = pair(*files, pairs=f"{table}:hsc,hst")
    assert len(first) == field.common
    np.testing.assert_array_equal(first.embeddings, second.embeddings)
    assert how.startswith(f"by {field.common} of {field.common + 1} pairs")


def test_what_cannot_be_matched_is_said(tmp_path: Path) -> None:
    field = simulated(150, 2)
    here = read_embeddings(str(survey(tmp_path / "0.parquet", field, 0)))
    away = read_embeddings(str(survey(tmp_path / "1.parquet", simulated(20, -40), 1)))
    with pytest.raises(InputError, match=r"0 sources of .* lie within 1 arcsec"):
        pair(here, away, match=1.0)
    bare = tmp_path / "bare.npy"
    np.save(bare, np.ones((4, 8), "f4"))
    with pytest.raises(ConfigurationError, match="no positions beside its embeddings"):
        pair(here, read_embeddings(str(bare)), match=1.0)
    twice = tmp_path / "twice.csv"
    twice.write_text("one,two\na1,b1\na1,b2\n")
    with pytest.raises(InputError, match="the id a1 stands for several rows"):
        pair(here, here, pairs=str(twice))


@pytest.fixture
def surveys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Field:
    monkeypatch.chdir(tmp_path)
    field = simulated(150, 2)
    for which, name in enumerate(("hsc", "hst")):
        survey(tmp_path / f"{name}.parquet", field, which)
    _pairs(tmp_path / "pairs.csv", field, spelt="bare")
    ra, dec = field.places[1]
    columns = {"RAJ2000": ra, "DEJ2000": dec, "z": np.round(0.001 * field.truth[1], 3)}
    pyarrow.parquet.write_table(pyarrow.table(columns), "cat.parquet")
    return field


def _json(capsys: Any, *command: str) -> dict[str, Any]:
    assert run([*command, "--json"]) == 0, capsys.readouterr().err
    return dict(json.loads(capsys.readouterr().out))


def test_score_takes_both_ways(surveys: Field, capsys: Any) -> None:
    for options in (["--match", "1arcsec"], ["--pairs", "pairs.csv"]):
        told = _json(capsys, "score", "hsc.parquet", "hst.parquet", "-k", "3", *options)
        assert told["scores"][0]["mknn"] == 1
        assert "have no partner" in told["paired"]
    assert run(["score", "hsc.parquet", "hst.parquet", "--match", "1arcsec", "--common"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert run(["score", "hsc.parquet", "hst.parquet", "--match", "1"]) == 2


def test_columns_are_joined_by_position(surveys: Field, capsys: Any) -> None:
    options = ["--colour", "cat.parquet:z", "--match", "1arcsec"]
    points = _json(capsys, "map", "hsc.parquet", *options)["points"]
    pairs = zip(points, surveys.truth[0], strict=True)
    known = [(point["colour"], truth) for point, truth in pairs if point["colour"] is not None]
    assert len(known) > 0.98 * surveys.common
    assert all(colour == round(0.001 * t, 3) for colour, t in known)
    told = _json(
        capsys, "score", "hsc.parquet", "hst.parquet", "--match", "1arcsec", "-k", "3",
        "--property", "cat.parquet:z",
    )  # fmt: skip
    assert len(told["metrics"]) == 2
    assert run(["map", "hsc.parquet", "--colour", "truth", "--match", "1arcsec", "--json"]) == 2


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_kept_column_colours_a_map(tmp_path: Path, ending: str, capsys: Any) -> None:
    field = simulated(150, 2)
    path = survey(tmp_path / f"hsc{ending}", field, 0)
    points = _json(capsys, "map", str(path), "--colour", "truth")["points"]
    assert [point["colour"] for point in points] == field.truth[0].tolist()


def test_errors_offer_what_would_pair_the_rows(surveys: Field, capsys: Any) -> None:
    """By what the files hold: ids in common, positions near each other, as many rows."""
    away = simulated(20, -40)
    survey(Path("away.parquet"), away, 1)
    fewer = read_embeddings("hst.parquet").take(slice(5, None))
    columns = {name: list(surveys.places[1][place][5:]) for place, name in enumerate(("ra", "dec"))}
    provenance = Provenance(model="m")
    write_embeddings(Path("fewer.parquet"), fewer.embeddings, fewer.ids or [], provenance, columns)
    write_embeddings(Path("bare.parquet"), fewer.embeddings, fewer.ids or [], provenance)
    found = len(mutual_matches(*surveys.places, 1.0).first)
    match, row, common, anew = "--match 1arcsec", "--by-row takes", "--common", "embed them again"
    wanted: dict[tuple[str, str], set[str]] = {
        ("hsc.parquet", "hst.parquet"): {match, row},
        ("hsc.parquet", "fewer.parquet"): {match},
        ("hst.parquet", "fewer.parquet"): {match, common},
        ("hst.parquet", "bare.parquet"): {common},
        ("hsc.parquet", "bare.parquet"): {anew},
        ("hsc.parquet", "away.parquet"): {row},
    }
    commands = {
        "score": ["score", "{0}", "{1}"],
        "layers": ["layers", "{0}", "{1}"],
        "compare": ["compare", "m={0},{1}", "n={0},{1}"],
        "table": ["table", "m:a={0}", "m:b={1}"],
        "map": ["map", "{0}", "{1}", "-o", "m.png"],
        "neighbours": ["neighbours", "{0}", "{1}", "-o", "n.png"],
        "join": ["join", "{0}", "{1}", "-o", "j.parquet", "--modes", "a,b"],
    }
    for files, offered in wanted.items():
        for name, command in commands.items():
            assert run([part.format(*files) for part in command]) == 1, (name, files)
            told = " ".join(capsys.readouterr().err.split())
            here = offered - {match} or {anew} if name == "join" else offered
            assert {one for one in (match, row, common, anew) if one in told} == here, told
    run(["score", "hsc.parquet", "hst.parquet"])
    assert f"pairs {found:,} rows by their positions on the sky" in capsys.readouterr().err
