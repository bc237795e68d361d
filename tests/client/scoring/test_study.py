"""Many models and surveys in one table: files found, scores, what is missing, formats."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from vim_embed_client.cli.main import run
from vim_embed_client.errors import ConfigurationError
from vim_embed_client.figures.sizes import sizes_figure
from vim_embed_client.figures.style import styled
from vim_embed_client.scoring.metrics import measure
from vim_embed_client.scoring.study import read_study, score_study
from vim_embed_client.scoring.table_files import ResultTable, write_table

N = 60
MODELS, SURVEYS = ("vim_tiny", "vim_base"), ("hsc", "jwst", "desi")
LACKING = ("vim_base", "desi")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """out/MODEL_SURVEY.npy with ids and provenance, in the cwd; one is missing."""
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(N, 5))
    for model in MODELS:
        for survey in SURVEYS:
            if (model, survey) != LACKING:
                path = Path(f"out/{model}_{survey}.npy")
                np.save(path, truth + 0.4 * rng.normal(size=truth.shape))
                about = {"model": model, "weights_digest": "sha256:" + "ab" * 32}
                ids = [f"{survey}/g{i}.fits" for i in range(N)]
                path.with_suffix(".npy.json").write_text(
                    json.dumps({"ids": ids, "provenance": about})
                )
    return tmp_path


PATTERN = "out/{model}_{survey}.npy"
OPTIONS = ["--permutations", "19", "-k", "5"]


def test_the_table_scores_every_two_surveys_of_every_model(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = ["--metric", "mutual-knn,cka"]
    assert run(["table", PATTERN, *OPTIONS, *metrics, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {(r["model"], r["first"], r["second"], r["metric"]): r for r in report["scores"]}
    pairs = [("desi", "hsc"), ("desi", "jwst"), ("hsc", "jwst")]
    wanted = {
        (model, *surveys, metric)
        for model in MODELS
        for surveys in pairs
        for metric in ("mutual-knn", "cka")
        if not (model == LACKING[0] and LACKING[1] in surveys)
    }
    assert {(m, *sorted((a, b)), metric) for m, a, b, metric in rows} == wanted
    assert report["missing"] == [{"model": "vim_base", "survey": "desi"}]
    for (model, first, second, metric), row in rows.items():
        z1, z2 = (np.load(f"out/{model}_{survey}.npy") for survey in (first, second))
        (expected,) = measure(z1, z2, [metric], k=5, permutations=19)
        assert row["value"] == pytest.approx(expected.value, abs=1e-12)
        assert (row["low"], row["p_value"]) == pytest.approx((expected.low, expected.p_value))


def test_the_table_is_printed_and_written(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = [part for ending in ("csv", "tex", "md") for part in ("-o", f"t.{ending}")]
    assert run(["table", PATTERN, *OPTIONS, *outputs]) == 0
    printed = capsys.readouterr().out
    assert "hsc and jwst: mutual-knn, k = 5" in printed
    assert "Missing: vim_base has no file for desi." in printed
    lines = Path("t.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    value = f"{float(rows[0]['value']):.4f}"
    assert value in printed
    notes = [line.removeprefix("# ") for line in lines if line.startswith("#")]
    assert "MISSING: vim_base has no file for desi" in notes
    assert notes[0].startswith("out/vim_")
    assert "weights sha256:abababababab" in notes[0]
    latex, markdown = Path("t.tex").read_text(), Path("t.md").read_text()
    assert "\\toprule" in latex
    assert f"vim\\_tiny & {N} & " in latex
    assert all(f"% {note}" in latex and f"- {note}" in markdown for note in notes)
    assert f"| {value} |" in markdown


def test_files_can_be_named_one_by_one(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = [f"tiny:{survey}=out/vim_tiny_{survey}.npy" for survey in ("hsc", "jwst")]
    assert run(["table", *named, *OPTIONS, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["scores"]
    assert (row["model"], row["first"], row["second"]) == ("tiny", "hsc", "jwst")


def test_all_models_are_scored_on_the_sources_that_all_have(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("out/vim_tiny_hsc.npy")
    np.save(path, np.load(path)[10:])
    about = json.loads(path.with_suffix(".npy.json").read_text())
    path.with_suffix(".npy.json").write_text(json.dumps(about | {"ids": about["ids"][10:]}))
    assert run(["table", PATTERN, *OPTIONS]) == 1
    assert "--common keeps the " in " ".join(capsys.readouterr().err.split())
    assert run(["table", PATTERN, *OPTIONS, "--common", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["scores"]
    both = [row for row in rows if {row["first"], row["second"]} == {"hsc", "jwst"}]
    assert [row["n"] for row in both] == [N - 10, N - 10]


def test_the_figure_of_sizes_has_every_model(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--size", "vim_tiny=7", "--size", "vim_base=98"]
    assert run(["table", PATTERN, *OPTIONS, *sizes, "-o", "size.svg"]) == 0
    picture = Path("size.svg").read_text()
    for text in ("vim_tiny", "vim_base", "98", "hsc and jwst", "millions of parameters"):
        assert f">{text}<" in picture or text in picture
    capsys.readouterr()


def test_labels_of_models_of_like_size_do_not_overlap(study: Path) -> None:
    scores = score_study(read_study([PATTERN]), ["mutual-knn"], k=5, permutations=1)
    names = {"a long name of a small model": 85.0, "vim-base": 98.0, "vit-base": 86.0}
    names |= {"vit-large": 304.0, "vit-large-too": 304.0}
    models = [replace(scores[0], model=name) for name in names]
    with styled():
        figure = sizes_figure(models, names)
        FigureCanvasAgg(figure).draw()
    labels = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert [label.get_text().split() for label in labels][-1] == [
        "vit-large,", "vit-large-too", "304"
    ]  # fmt: skip
    boxes = [(label.get_window_extent(), label.get_text().count("\n")) for label in labels]
    for row in {row for _, row in boxes}:
        ends = sorted((box.x0, box.x1) for box, mine in boxes if mine == row)
        assert all(end < start for (_, end), (start, _) in pairwise(ends))
    width = figure.get_size_inches()[0] * figure.dpi
    assert all(0 <= box.x0 < box.x1 <= width for box, _ in boxes)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["x_{model}_{survey}.npy"], 2, "no file fits 'x_{model}_{survey}.npy'"),
        (["out/{model}_hsc.npy"], 2, "must have {model} once and {survey} once"),
        (["a=out/vim_tiny_hsc.npy"], 2, "is not of the form MODEL:SURVEY=FILE"),
        (["a:hsc=out/vim_tiny_hsc.npy"], 2, "there is one survey (hsc)"),
        (["a:x=one.npy", "a:x=two.npy"], 2, "a on x stands for one.npy and two.npy"),
        (["a:hsc=out/vim_tiny_hsc.npy", "b:jwst=out/vim_tiny_jwst.npy"], 1, "no model has two"),
        ([PATTERN, "-o", "t.txt"], 2, "does not end in one of .csv, .tex, .md, .png"),
        ([PATTERN, "-o", "t.png"], 2, "a figure needs --size of the models"),
        ([PATTERN, "--size", "vim_tiny=7"], 2, "--size needs a figure"),
        ([PATTERN, "--size", "vim_tiny", "-o", "t.png"], 2, "not of the form MODEL=MILLIONS"),
        ([PATTERN, "--size", "vim_tiny=7", "-o", "t.png"], 2, "how large is vim_base?"),
        ([PATTERN, "--metric", "ckna"], 2, "'ckna' is none of mutual-knn"),
    ],
)
def test_what_cannot_be_tabled_names_the_fix(
    study: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert run(["table", *arguments]) == code
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("{survey}/{model}.npy", {("m", "a.b"): "a.b/m.npy", ("m", "c"): "c/m.npy"}),
        ("./{survey}/{model}.npy", {("m", "a.b"): "a.b/m.npy", ("m", "c"): "c/m.npy"}),
    ],
)
def test_a_pattern_stands_for_names_without_slashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, found: dict[Any, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a.b", "c"):
        Path(folder).mkdir()
        Path(folder, "m.npy").touch()
    assert dict(read_study([pattern]).files) == found
    assert dict(read_study([str(tmp_path / pattern)]).files) == {
        key: str(tmp_path / path) for key, path in found.items()
    }


def test_brackets_in_a_pattern_are_letters(tmp_path: Path) -> None:
    for survey in ("x", "y"):
        (tmp_path / f"[m]_{survey}.npy").touch()
    study = read_study([str(tmp_path / "[{model}]_{survey}.npy")])
    assert sorted(study.files) == [("m", "x"), ("m", "y")]
    with pytest.raises(ConfigurationError, match="no file fits"):
        read_study([str(tmp_path / "[{model}]-{survey}.npy")])


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("tex", r"50\% \& \#1\_a \textbackslash{}x & 1 \\"),
        ("md", "| 50% & #1_a \\x \\| y | 1 |"),
        ("csv", '"a,b",1'),
    ],
)
def test_cells_are_written_as_the_format_wants_them(
    tmp_path: Path, ending: str, expected: str
) -> None:
    text = r"50% & #1_a \x" + (" | y" if ending == "md" else "")
    table = ResultTable(
        records=[{"name": "a,b", "value": 1}], head=["name", "v"], rows=[[text, "1"]], notes=["n"]
    )
    path = tmp_path / f"t.{ending}"
    write_table(path, table)
    assert expected in path.read_text().splitlines()
