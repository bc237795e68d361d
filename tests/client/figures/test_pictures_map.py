"""`vim-embed map`: the projections, the columns that colour them, and the figure."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA  # type: ignore[import-untyped]

from support.embedding_files import write_embeddings
from support.figure_layout import assert_apart_and_within
from vim_embed_client.cli.main import run
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.figures.columns import Column, read_column
from vim_embed_client.figures.map import MapData, map_figure
from vim_embed_client.figures.projection import Projection, pca, umap
from vim_embed_client.figures.style import fitted, names, shortened
from vim_embed_client.results import Provenance
from vim_embed_client.scoring.embedding_files import EmbeddingFile, read_embeddings

N = 60
Array = NDArray[Any]


@pytest.fixture
def z() -> Array:
    """Three clumps in 12 dimensions, row i in clump i % 3."""
    rng = np.random.default_rng(0)
    return (6 * rng.normal(size=(3, 12))[np.arange(N) % 3] + rng.normal(size=(N, 12))).astype("f4")


@pytest.fixture
def survey(z: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """z as hst.npy with ids, and tables about its sources in another order, in the cwd."""
    monkeypatch.chdir(tmp_path)
    ids = [f"hst/g{row:02}.png" for row in range(N)]
    provenance = Provenance(model="vim-tiny", weights_digest="sha256:0123456789abcdef")
    write_embeddings(Path("hst.npy"), z, ids, provenance)
    order = np.random.default_rng(1).permutation(N)
    with Path("cat.csv").open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["name", "id", "z", "kind", "bars"])
        for row in order:
            kind = ("spiral", "elliptical", "irregular")[row % 3]
            redshift = "" if row == 4 else row / 10
            writer.writerow([f"NGC {row}", f"g{row:02}", redshift, kind, row % 2])
    return tmp_path


def test_pca_is_scikit_learn_s(z: Array) -> None:
    found, theirs = pca(z), PCA(n_components=2).fit(z)
    expected = theirs.transform(z)
    signs = np.sign((found.coordinates * expected).sum(axis=0))
    np.testing.assert_allclose(found.coordinates, expected * signs, atol=1e-4)
    assert f"{100 * theirs.explained_variance_ratio_[0]:.1f} % of variance" in found.axes[0]
    np.testing.assert_array_equal(found.coordinates, pca(z).coordinates)


def test_pca_of_one_dimension_and_of_nothing() -> None:
    line = pca(np.arange(5.0)[:, None])
    assert (np.diff(line.coordinates[:, 0]) > 0).all()
    assert (line.coordinates[:, 1] == 0).all()
    with pytest.raises(InputError, match="all embeddings are the same"):
        pca(np.ones((5, 3)))


@pytest.mark.filterwarnings("default")
def test_umap_keeps_the_clumps_apart(z: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("umap.umap_")
    # As Python they take 60 rows sooner than it takes to compile them.
    for name in ("fast_knn_indices", "smooth_knn_dist", "compute_membership_strengths"):
        monkeypatch.setattr(library, name, getattr(library, name).py_func)
    found = umap(z, seed=3).coordinates
    np.testing.assert_array_equal(found, umap(z, seed=3).coordinates)
    apart = np.linalg.norm(found[:, None] - found, axis=2)
    np.fill_diagonal(apart, np.inf)
    nearest = apart.argmin(axis=1)
    assert np.mean(nearest % 3 == np.arange(N) % 3) > 0.9
    with pytest.raises(InputError, match="at least 8 rows, got 5"):
        umap(z[:5])


def test_without_umap_the_extra_is_named(
    survey: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    assert run(["map", "hst.npy", "--method", "umap", "-o", "map.png"]) == 2
    assert 'pip install "vim-embed[umap]", or take --method pca' in capsys.readouterr().err


def test_columns_are_joined_by_id(survey: Path) -> None:
    file = read_embeddings("hst.npy")
    redshift = read_column("cat.csv:z", file)
    assert (redshift.kind, redshift.missing) == ("continuous", 1)
    expected = [np.nan if row == 4 else row / 10 for row in range(N)]
    np.testing.assert_array_equal(redshift.values, expected)
    kind = read_column("cat.csv:kind", file.take([5, 2, 3]))
    assert (kind.kind, kind.values.tolist()) == ("categorical", ["irregular"] * 2 + ["spiral"])
    assert read_column("cat.csv:bars", file).kind == "categorical"
    assert read_column("cat.csv:bars", file, kind="continuous").values[1] == 1


def test_columns_of_the_parquet_file_itself(z: Array, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "z.parquet"
    mass: list[float | None] = [10 + row / 7 for row in range(N)]
    mass[6] = None
    table = {"id": [str(row) for row in range(N)], "embedding": z.tolist(), "mass": mass}
    parquet.write_table(pa.table(table), path)
    file = read_embeddings(str(path))
    values = read_column("mass", file.take(np.arange(5, 9))).values
    np.testing.assert_array_equal(values, np.array(mass[5:9], float))
    other = read_column(f"{path}:mass", EmbeddingFile(label="x.npy", embeddings=z, ids=file.ids))
    assert other.missing == 1
    with pytest.raises(ConfigurationError, match="no column 'flux', but id, embedding, mass"):
        read_column("flux", file)


def test_without_ids_rows_go_by_position(survey: Path, z: Array) -> None:
    file = EmbeddingFile(label="z.npy", embeddings=z)
    names = read_column("cat.csv:name", file.take([7, 0])).values
    table = list(csv.DictReader(Path("cat.csv").read_text().splitlines()))
    assert names.tolist() == [table[7]["name"], table[0]["name"]]


@pytest.mark.parametrize(
    ("text", "argument", "message"),
    [
        ("id,z\ng00,1\ng00,2\n", "t.csv:z", "the id g00 stands for several rows"),
        ("id,z\nx,1\n", "t.csv:z", "no id of t.csv is one of hst.npy: x there, hst/g00.png"),
        ("key,z\ng00,1\n", "t.csv:z", "1 rows and hst.npy 60: join them by id, .*--id-column"),
        ("id,z\ng00,\n", "t.csv:z", "'z' has no value for any of the rows"),
        ("id,z\ng00,1\n", "t.csv", "give t.csv:COLUMN"),
        ("id,z\ng00,1\n", "t.csv:mass", "no column 'mass', but id, z"),
        ("id,z\ng00,1\n", "u.csv:z", "u.csv is not there"),
        ("", "z", "no columns beside the embeddings: colour by FILE:COLUMN"),
    ],
)
def test_columns_that_do_not_fit_are_explained(
    survey: Path, text: str, argument: str, message: str
) -> None:
    Path("t.csv").write_text(text)
    with pytest.raises((InputError, ConfigurationError), match=message):
        read_column(argument, read_embeddings("hst.npy"))


def test_another_id_column(survey: Path) -> None:
    Path("t.csv").write_text("source,z\ng01,7.5\ng02,8.25\n")
    values = read_column("t.csv:z", read_embeddings("hst.npy"), id_column="source").values
    assert values[:4].tolist() == pytest.approx([np.nan, 7.5, 8.25, np.nan], nan_ok=True)


def test_the_command_draws_and_tells(survey: Path, z: Array, capsys: Any) -> None:
    args = ["map", "hst.npy", "-o", "map.png", "-o", "map.csv", "--colour", "cat.csv:z"]
    assert run([*args, "--label", "redshift z", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert Path("map.png").read_bytes().startswith(b"\x89PNG")
    assert told["colour"] == {"name": "z", "kind": "continuous", "log": False}
    expected = pca(z).coordinates
    assert [(p["x"], p["y"]) for p in told["points"]] == [tuple(xy) for xy in expected.tolist()]
    assert (told["points"][3]["id"], told["points"][3]["colour"]) == ("hst/g03.png", 0.3)
    assert told["points"][4]["colour"] is None
    table = list(csv.DictReader(Path("map.csv").read_text().splitlines()))
    assert [float(row["x"]) for row in table] == [p["x"] for p in told["points"]]
    assert table[4]["colour"] == ""
    assert run(args) == 0
    assert (
        "Coloured by z (continuous, joined by its column id, 1 without a value)"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "nothing to do: give -o FILE, --json or both"),
        (["-o", "map.gif"], 2, "does not end in one of .png"),
        (["-o", "map.png", "--colour", "cat.csv:kind", "--continuous"], 1, "'kind' is not numeric"),
        (["-o", "map.png", "--colour", "cat.csv:flux"], 2, "no column 'flux', but name, id, z"),
    ],
)
def test_wrong_usage(survey: Path, capsys: Any, args: list[str], code: int, message: str) -> None:
    assert run(["map", "hst.npy", *args]) == code
    assert message in capsys.readouterr().err
    assert not Path("map.png").exists()


def test_rows_that_are_not_finite_can_be_left_out(survey: Path, z: Array, capsys: Any) -> None:
    z[2, 3] = np.nan
    ids = [f"hst/g{row:02}.png" for row in range(N)]
    write_embeddings(Path("hst.npy"), z, ids, Provenance(model="vim-tiny"))
    assert run(["map", "hst.npy", "--json"]) == 1
    assert "hst/g02.png (null or not finite)" in capsys.readouterr().err
    assert run(["map", "hst.npy", "--json", "--drop-invalid", "--colour", "cat.csv:kind"]) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [p["row"] for p in points] == [0, 1, *range(3, N)]
    assert points[2]["colour"] == "spiral"


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def column(kind: str) -> Column:
    if kind == "continuous":
        values = np.where(np.arange(N) % 9 == 0, np.nan, np.linspace(0, 3, N))
        return Column(name="z", kind="continuous", values=values)
    classes = np.array(["", *(f"class {i} " + "y" * 30 for i in range(12))])
    return Column(name="kind", kind="categorical", values=classes[np.arange(N) % 13])


@pytest.mark.parametrize("kind", ["continuous", "categorical"])
def test_nothing_leaves_the_map_or_covers_another(z: Array, kind: str) -> None:
    file = EmbeddingFile(
        label="/data/" + "deep/" * 30 + "z.npy", embeddings=z,
        provenance={"model": "vim-tiny", "weights_digest": "sha256:ab", "random_weights": True},
    )  # fmt: skip
    figure = map_figure(
        MapData(
            files=[file],
            projection=pca(z),
            column=column(kind),
            label="a long label of what is shown (unit), " * 3,
        )
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert "RANDOM WEIGHTS, not a scientific result" in words(figure)
    assert "weights sha256:ab" in words(figure)
    boxes: list[Any] = [text.get_window_extent() for text in figure.texts]
    legend: Any = figure.axes[0].get_legend()
    entries = [text.get_text() for text in legend.get_texts()]
    few = ["5 others (20)", "no value (5)"]
    assert entries[-2:] == (few if kind == "categorical" else ["no value (7)"])
    assert len(entries) == (9 if kind == "categorical" else 1)
    boxes.append(legend.get_window_extent())
    legend.set_in_layout(False)
    boxes += [axes.get_tightbbox(canvas.get_renderer()) for axes in figure.axes]
    assert_apart_and_within(figure, boxes)


def test_a_map_without_colours(z: Array) -> None:
    file = EmbeddingFile(label="z.npy", embeddings=z)
    figure = map_figure(MapData(files=[file], projection=pca(z)))
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), pca(z).coordinates)
    assert "z.npy: the file does not name its model" in words(figure)


def test_files_are_called_by_what_tells_them_apart(z: Array, tmp_path: Path) -> None:
    labels = [str(tmp_path / name) for name in ("a.npy", "b.npy")]
    for label in labels:
        np.save(label, z)
    one, two = (EmbeddingFile(label=label, embeddings=z) for label in labels)
    assert names([one, two]) == ["a", "b"]
    tiny, small = (
        EmbeddingFile(label=labels[0], embeddings=z, provenance={"model": model})
        for model in ("vim-tiny", "vim-small")
    )
    assert names([tiny, small]) == ["vim-tiny", "vim-small"]
    assert names([one, one]) == [shortened(labels[0], 32)] * 2


def test_words_are_fitted_and_shortened() -> None:
    lines = fitted("a word and another " * 10, 10, 2.0)
    assert " ".join(lines) == " ".join(("a word and another " * 10).split())
    assert 3 < len(lines) < 12
    assert fitted("", 10, 2.0) == []
    short = shortened("/a/very/long/path/to/galaxies/0001.png", 20)
    assert len(short) == 20
    assert short.endswith("0001.png")


def test_a_projection_is_what_it_is_called(z: Array) -> None:
    found = pca(z)
    assert isinstance(found, Projection)
    assert found.coordinates.shape == (N, 2)


@pytest.mark.parametrize("kind", ["continuous", None])
@pytest.mark.parametrize("flatness", [0.02, 0.3, 1.0, 5.0])
def test_distances_on_paper_are_those_of_the_projection(
    z: Array, kind: str | None, flatness: float
) -> None:
    square = pca(z)
    coordinates = square.coordinates * [1, flatness] / np.ptp(square.coordinates, axis=0)
    projection = Projection(coordinates=coordinates, axes=square.axes, about=square.about)
    file = EmbeddingFile(label="z.npy", embeddings=z)
    figure = map_figure(
        MapData(
            files=[file],
            projection=projection,
            column=column(kind) if kind else None,
            label="z",
        )
    )
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    scale = axes.transData.transform([(0, 0), (1, 1)])
    across, up = np.diff(scale, axis=0)[0]
    assert across == pytest.approx(up)
    on_paper = axes.transAxes.inverted().transform(axes.transData.transform(coordinates))
    assert on_paper.min() > 0
    assert on_paper.max() < 1
    assert figure.get_size_inches()[1] < 8
