"""Figures of a paper: heat map of layers, maps of two surveys, styles, text that stays text."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex

from vim_embed_client.cli.main import run
from vim_embed_client.figures.columns import Column
from vim_embed_client.figures.heat_map import heat_map_figure
from vim_embed_client.figures.map import MapData, map_figure
from vim_embed_client.figures.projection import pca
from vim_embed_client.figures.style import colours, faint, styled, told_apart
from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.layers import score_layers
from vim_embed_client.scoring.mknn import mknn

N = 40


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two surveys as .npy with ids, and two files of layers, in the cwd."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(N, 5))
    for survey in ("hsc", "jwst"):
        np.save(f"{survey}.npy", truth + 0.2 * rng.normal(size=truth.shape))
        about = {"ids": [f"{survey}/{i}.png" for i in range(N)], "provenance": {"model": "m"}}
        Path(f"{survey}.npy.json").write_text(json.dumps(about))
        layers = {f"block{i}": truth + (3 - i) * rng.normal(size=truth.shape) for i in range(3)}
        arrays: dict[str, Any] = {"ids": np.array([str(i) for i in range(N)]), **layers}
        np.savez(f"{survey}.npz", **arrays)
    return tmp_path


def two(folder: Path) -> list[EmbeddingFile]:
    return [
        EmbeddingFile(label=f"{name}.npy", embeddings=np.load(f"{name}.npy"))
        for name in ("hsc", "jwst")
    ]


def data(folder: Path, **options: Any) -> MapData:
    files = two(folder)
    rows = np.concatenate([file.embeddings for file in files])
    return MapData(files=files, projection=pca(rows), **options)


def test_the_heat_map_has_a_cell_for_each_two_layers(folder: Path) -> None:
    scores = score_layers("hsc.npz", "jwst.npz", k=5)
    figure = heat_map_figure(scores)
    axes = figure.axes[0]
    (image,) = axes.images
    assert np.array_equal(np.asarray(image.get_array()), scores.values)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["block0", "block1", "block2"]
    assert axes.texts[4].get_text() == f"{scores.values[1, 1]:.2f}"


def test_a_layer_with_itself_is_grey_and_no_match(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = score_layers("hsc.npz", "hsc.npz", k=5)
    figure = heat_map_figure(scores)
    (image,) = figure.axes[0].images
    cells: Any = image.get_array()
    assert np.array_equal(np.ma.getmaskarray(cells), np.eye(3, dtype=bool))
    most = scores.values[~np.eye(3, dtype=bool)].max()
    assert image.get_clim()[1] == most
    assert f"MKNN up to {most:.3f} (block" in figure.texts[0].get_text()
    assert run(["layers", "hsc.npz", "hsc.npz", "-k", "5"]) == 0
    assert "block0: most with block0" not in capsys.readouterr().out


def test_a_layer_may_be_called_layer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("a.npz", layer=np.load("hsc.npy"), other=np.load("jwst.npy"))
    assert run(["layers", "a.npz", "a.npz", "-k", "5", "-o", "t.csv"]) == 0
    lines = Path("t.csv").read_text().splitlines()
    (row, _) = csv.DictReader(line for line in lines if not line.startswith("#"))
    assert row["layer of the first file"] == "layer"
    assert float(row["layer"]) == 1
    capsys.readouterr()


LAYERS: dict[str, tuple[list[str], list[str]]] = {
    "short names": (["block0", "block1"], ["block0", "block1"]),
    "common ends": (
        [f"encoder.layers.{i}.mixer.output_projection" for i in range(3)],
        ["0", "1", "2"],
    ),
    "one name": (["encoder.layers.11.mixer.output"], ["encode….mixer.output"]),
    "alike when cut": (
        ["a_very_long_name_1_of_a_layer_of_blocks", "a_very_long_name_2_of_a_layer_of_blocks"],
        ["0 a_ver…_of_blocks", "1 a_ver…_of_blocks"],
    ),
    "one is the others' beginning": (
        ["a.long.beginning.of", "a.long.beginning.of.names"],
        ["of", "of.names"],
    ),
}


@pytest.mark.parametrize("case", LAYERS)
def test_labels_tell_layers_apart(case: str) -> None:
    names, labels = LAYERS[case]
    assert told_apart(names, 20) == labels


def test_labels_of_thirty_layers_do_not_reach_into_the_small_print(folder: Path) -> None:
    names = [f"blocks.{i}.mixer.a_long_name_of_a_layer" for i in range(29)] + ["last_hidden_state"]
    rng = np.random.default_rng(1)
    arrays: dict[str, Any] = {name: rng.normal(size=(N, 3)) for name in names}
    np.savez("many.npz", **arrays)
    with styled():
        figure = heat_map_figure(score_layers("many.npz", "many.npz", k=5))
        FigureCanvasAgg(figure).draw()
    labels = [*figure.axes[0].get_xticklabels(), *figure.axes[0].get_yticklabels()]
    boxes = [label.get_window_extent() for label in labels]
    (small_print,) = (text for text in figure.texts if text.get_text().startswith("MKNN: mean"))
    assert min(box.y0 for box in boxes) > small_print.get_window_extent().y1
    assert min(box.x0 for box in boxes) > 0
    assert len({label.get_text() for label in labels[:30]}) == 30


def test_the_layers_command_writes_numbers_and_picture(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = [part for name in ("t.csv", "h.png", "h.svg", "t.tex") for part in ("-o", name)]
    assert run(["layers", "hsc.npz", "jwst.npz", "-k", "5", *outputs, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    lines = Path("t.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    z1, z2 = np.load("hsc.npz")["block2"], np.load("jwst.npz")["block1"]
    assert float(rows[2]["block1"]) == pytest.approx(mknn(z1, z2, 5), abs=1e-12)
    assert report["mknn"][2][1] == float(rows[2]["block1"])
    assert "MKNN at k = 5 of 40 sources, paired by id" in lines[2]
    assert "block2</text>" in Path("h.svg").read_text()
    assert run(["layers", "hsc.npz", "jwst.npz", "-k", "5"]) == 0
    best = int(np.argmax(report["mknn"][2]))
    assert f"block2: most with block{best}, " in capsys.readouterr().out


def test_two_views_of_a_source_are_joined(folder: Path) -> None:
    shown = data(folder)
    axes = map_figure(shown).axes[0]
    (lines,) = (c for c in axes.collections if isinstance(c, LineCollection))
    discs, rings = (c for c in axes.collections if isinstance(c, PathCollection))
    ends = np.array(lines.get_segments())
    assert ends[:, 0] == pytest.approx(np.asarray(discs.get_offsets()))
    assert ends[:, 1] == pytest.approx(np.asarray(rings.get_offsets()))
    assert ends.reshape(-1, 2) == pytest.approx(
        shown.projection.coordinates.reshape(2, N, 2).swapaxes(0, 1).reshape(-1, 2)
    )
    assert len(rings.get_facecolor()) == 0
    assert len(discs.get_facecolor()) > 0


def test_logarithmic_colours_leave_out_what_has_no_logarithm(folder: Path) -> None:
    values = np.geomspace(1, 1e6, N)
    values[:3] = 0, -1, np.nan
    column = Column(name="mass", kind="continuous", values=values)
    figure = map_figure(data(folder, column=column, label="mass", log=True))
    axes, bar = figure.axes
    discs = [c for c in axes.collections if isinstance(c, PathCollection)]
    assert [len(np.asarray(c.get_offsets())) for c in discs] == [3, N - 3, 3, N - 3]
    assert bar.get_yscale() == "log"
    assert bar.get_ylim() == pytest.approx(tuple(np.percentile(values[3:], [2, 98])))
    words = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    assert "2 values are not above zero and have no colour" in words
    same = np.asarray(discs[1].get_facecolor()), np.asarray(discs[3].get_edgecolor())
    assert same[0] == pytest.approx(same[1])


@pytest.mark.parametrize("ending", ["svg", "pdf"])
def test_text_stays_text(folder: Path, capsys: pytest.CaptureFixture[str], ending: str) -> None:
    assert run(["map", "hsc.npy", "jwst.npy", "-o", f"m.{ending}"]) == 0
    content = Path(f"m.{ending}").read_bytes()
    if ending == "svg":
        assert b">PC 1 (" in content
    else:
        assert b"/TrueType" in content or b"/CIDFontType2" in content
        assert b"/Type3" not in content
    capsys.readouterr()


def test_a_style_of_one_s_own_changes_the_figure(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.mplstyle").write_text(
        "font.size: 20\naxes.labelsize: 17\naxes.labelcolor: ff0000\n"
        "axes.prop_cycle: cycler('color', ['123456', '654321'])\nsavefig.dpi: 50\n"
    )
    with styled(Path("mine.mplstyle")):
        figure = map_figure(data(folder))
    axes = figure.axes[0]
    assert axes.xaxis.label.get_fontsize() == 17
    assert to_hex(axes.xaxis.label.get_color()) == "#ff0000"
    assert to_hex(np.asarray(axes.collections[1].get_facecolor())[0]) == "#123456"
    command = ["map", "hsc.npy", "jwst.npy", "-o", "m.svg", "--style"]
    assert run([*command, "mine.mplstyle"]) == 0
    assert re.search(r"font: 17px|font-size: 17px|17px", Path("m.svg").read_text())
    Path("bad.mplstyle").write_bytes(b"\xff\xfe\x00")
    assert run([*command, "bad.mplstyle"]) == 2
    assert "is no matplotlib style sheet" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["map", "hsc.npy", "-o", "m.png", "--log"], 2, "--log is of numbers to colour by"),
        (["map", "hsc.npy", "-o", "m.png", "--common"], 2, "--common pairs two files, and --match"),
        (["map", "hsc.npy", "wide.npy", "-o", "m.png", "--by-row"], 1, "are of two models"),
        (["score", "hsc.npy", "jwst.npy", "--style", "hsc.npy"], 2, "give --figure FILE too"),
        (["layers", "hsc.npz", "jwst.npz", "--style", "hsc.npy"], 2, "give -o FILE.pdf too"),
        (["layers", "hsc.npz", "jwst.npz", "-o", "h.txt"], 2, "does not end in one of .csv"),
        (["map", "hsc.npy", "-o", "m.png", "--colour", "t.csv:v", "--log"], 1, "is above zero"),
    ],
)
def test_what_cannot_be_drawn_names_the_fix(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    np.save("wide.npy", np.random.default_rng(1).normal(size=(N, 9)))
    Path("t.csv").write_text("v\n" + "\n".join(str(-i / 7) for i in range(N)) + "\n")
    assert run(arguments) == code
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_a_dark_style_hides_nothing(folder: Path) -> None:
    Path("dark.mplstyle").write_text(
        "figure.facecolor: 111111\naxes.facecolor: 111111\naxes.labelcolor: eeeeee\n"
    )
    with styled():
        light = colours(), faint()
    with styled(Path("dark.mplstyle")):
        dark = colours(), faint()
    assert light[0][-1] == "#222222"
    assert dark[0] == [*light[0][:-1], "#eeeeee"]
    assert (light[1], dark[1]) == ("#646464", "#acacac")
