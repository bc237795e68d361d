"""Models on the same sources: the paired interval, its test, its power, and the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t as student

from vim_embed_client.cli.main import run
from vim_embed_client.scoring.comparison import Difference, compare
from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.metrics import measure
from vim_embed_client.scoring.mknn import mknn
from vim_embed_client.scoring.pairing import pair_all
from vim_embed_client.scoring.student import quantile_95, two_sided_p

Array = NDArray[Any]


def survey(
    rng: np.random.Generator, n: int, *noises: float, shared: float = 0.0
) -> list[tuple[str, Array, Array]]:
    """Models that see the same sources through two telescopes.

    noises: of each model. shared: of the telescopes, which is in the pictures for all models.
    """
    truth = rng.normal(size=(n, 6)) * rng.gamma(2, size=(n, 1))
    pictures = truth + shared * rng.normal(size=(2, n, 6))
    return [
        (f"m{place}", *(pictures + noise * rng.normal(size=(2, n, 6))))
        for place, noise in enumerate(noises)
    ]


@pytest.mark.parametrize("freedom", [9, 19])
@pytest.mark.parametrize("t", [0.0, 0.5, 2.093, -3.1, 8.0])
def test_p_is_that_of_student_s_t(t: float, freedom: int) -> None:
    assert two_sided_p(t, freedom) == pytest.approx(2 * student.sf(abs(t), freedom), rel=1e-5)
    assert quantile_95(freedom) == pytest.approx(student.ppf(0.975, freedom), rel=1e-6)


def test_each_model_has_its_own_value_and_interval() -> None:
    models = survey(np.random.default_rng(0), 200, 0.3, 0.5)
    found = compare(models, "cka")
    for each, (_, z1, z2) in zip(found, models, strict=True):
        (alone,) = measure(z1, z2, ["cka"], permutations=1)
        assert (each.value, each.value_low, each.value_high) == (alone.value, alone.low, alone.high)
    assert found[1].difference == found[1].value - found[0].value
    assert np.isnan([found[0].difference, found[0].p_value]).all()


def test_a_model_does_not_differ_from_itself() -> None:
    ((_, z1, z2),) = survey(np.random.default_rng(1), 60, 0.3)
    _, same = compare([("a", z1, z2), ("b", z1, z2)])
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize("metric", ["mutual-knn", "unbiased-cka"])
def test_the_paired_interval_covers_and_the_test_keeps_its_level(metric: str) -> None:
    """Two models of equal quality: the true difference is none."""
    rng = np.random.default_rng(2)
    found = [compare(survey(rng, 100, 0.4, 0.4), metric, k=5)[1] for _ in range(60)]
    assert np.mean([each.low <= 0 <= each.high for each in found]) >= 0.88
    assert np.mean([each.p_value <= 0.05 for each in found]) <= 0.12


def test_the_test_finds_a_difference_that_single_intervals_do_not() -> None:
    rng = np.random.default_rng(3)
    pairs = [compare(survey(rng, 400, 0.02, 0.28, shared=0.4)) for _ in range(8)]
    assert all(other.difference < 0 for _, other in pairs)
    found = sum(other.p_value < 0.05 for _, other in pairs)
    assert found >= 6
    assert sum(other.value_high < first.value_low for first, other in pairs) < found


def bright_and_faint(
    rng: np.random.Generator, n: int, *noises: float
) -> list[tuple[str, Array, Array]]:
    """Models on sources of which a few are much brighter than others, as galaxies are."""
    truth = rng.normal(size=(n, 6)) * [3, 2, 1.5, 1, 1, 1]
    truth /= np.sqrt(rng.chisquare(3, size=(n, 1)) / 3)
    shared = 0.5 / 3 * rng.normal(size=(2, n, 6)) * np.linalg.norm(truth, axis=1)[:, None]
    return [
        (f"m{place}", *(truth + shared + noise * rng.normal(size=(2, n, 6))))
        for place, noise in enumerate(noises)
    ]


def unpaired_p(first: Difference, other: Difference) -> float:
    """As if the two models had been scored on sources of their own."""
    errors = [(each.value - each.value_low) / quantile_95(19) for each in (first, other)]
    return two_sided_p(other.difference / float(np.hypot(errors[0], errors[1])), 2 * 19)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_difference_of_two_hundredths_is_found_among_5000_sources() -> None:
    """Only by the paired test, where the brightness of the sources that were drawn matters."""
    rng = np.random.default_rng(4)
    pairs = [compare(bright_and_faint(rng, 5000, 0.02, 0.45), "unbiased-cka") for _ in range(40)]
    gaps = [first.value - other.value for first, other in pairs]
    assert np.mean(gaps) == pytest.approx(0.02, abs=0.003)
    assert np.mean([other.p_value < 0.05 for _, other in pairs]) >= 0.8
    assert np.mean([unpaired_p(*pair) < 0.05 for pair in pairs]) < 0.5


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_difference_in_mknn_is_found_among_5000_sources() -> None:
    rng = np.random.default_rng(4)
    pairs = [compare(survey(rng, 5000, 0.02, 0.17, shared=0.4)) for _ in range(10)]
    gaps = [first.value - other.value for first, other in pairs]
    assert np.mean(gaps) == pytest.approx(0.02, abs=0.003)
    assert sum(other.p_value < 0.05 for _, other in pairs) >= 8


def test_few_sources_have_no_interval() -> None:
    found = compare(survey(np.random.default_rng(5), 8, 0.1, 0.5), k=2)
    assert np.isnan([found[1].low, found[1].p_value, found[0].value_low]).all()
    assert found[1].as_dict()["p_value"] is None


def test_models_of_other_lengths_are_refused() -> None:
    rng = np.random.default_rng(6)
    with pytest.raises(ValueError, match="20 and 30 sources"):
        compare(survey(rng, 20, 0.1) + survey(rng, 30, 0.1))


def named(ids: str) -> EmbeddingFile:
    return EmbeddingFile(label=ids, embeddings=np.array([[ord(i)] for i in ids]), ids=list(ids))


def test_all_files_are_brought_to_the_same_sources() -> None:
    files = pair_all([named("abcde"), named("dcbxa"), named("zbead")], common=True)
    assert [file.ids for file in files] == [["a", "b", "d"]] * 3
    assert [file.embeddings[:, 0].tolist() for file in files] == [[97, 98, 100]] * 3


def write(folder: Path) -> list[str]:
    arguments = []
    for name, z1, z2 in survey(np.random.default_rng(7), 100, 0.3, 0.6, 1.5):
        paths = [folder / f"{name}_{place}.npy" for place in "ab"]
        for path, z in zip(paths, (z1, z2), strict=True):
            np.save(path, z)
        arguments.append(f"{name}={paths[0]},{paths[1]}")
    return arguments


def test_the_command_prints_and_writes_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = write(tmp_path)
    files = [str(tmp_path / name) for name in ("t.csv", "t.tex")]
    assert run(["compare", *models, "--json", "-o", files[0], "-o", files[1], "-k", "5"]) == 0
    printed = json.loads(capsys.readouterr().out)["models"]
    z1, z2 = (np.load(tmp_path / f"m0_{place}.npy") for place in "ab")
    assert printed[0]["value"] == pytest.approx(mknn(z1, z2, 5), abs=1e-12)
    assert [each["model"] for each in printed] == ["m0", "m1", "m2"]
    assert printed[2]["difference"] < printed[1]["difference"] < 0
    assert printed[2]["p_value"] < 0.001
    lines = Path(files[0]).read_text().splitlines()
    assert lines[0].startswith(f"# {tmp_path}/m0_a.npy: the file does not name its model")
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert float(rows[1]["difference"]) == printed[1]["difference"]
    latex = Path(files[1]).read_text()
    assert f"m1 & {printed[1]['value']:.4f} & " in latex
    assert latex.startswith(f"% {tmp_path}/m0_a.npy")
    assert run(["compare", *models, "--metric", "cka"]) == 0
    printed_table = capsys.readouterr().out
    assert "minus m0" in printed_table
    assert "< 0.0001" in printed_table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a=x.npy"], "'a=x.npy' is not of the form NAME=FIRST,SECOND"),
        (["a=x,y,z", "b=x,y"], "'a=x,y,z' is not of the form"),
        (["a=x,y"], "give two models or more"),
        (["a=x,y", "a=z,q"], "'a' stands for several models"),
        (["a=x,y", "b=x,y", "-o", "t.txt"], "does not end in one of .csv, .tex, .md"),
        (["a=x,y", "b=x,y"], "x is not there"),
    ],
)
def test_the_command_names_the_fix(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(["compare", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())
