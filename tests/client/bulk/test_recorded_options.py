"""What embedding files tell of how their rows were read, and what `score` says of differences."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vim_embed_client.bulk.recorded_options import read_otherwise, recorded_options
from vim_embed_client.bulk.sources.options import ReadOptions, SkyOptions
from vim_embed_client.cli.main import run
from vim_embed_client.scoring.embedding_files import read_embeddings
from vim_embed_pixels.stretch import Stretch

from .survey import SIZE

PLAIN = ReadOptions()
SKY = SkyOptions(images=("a.fits",), size=2.4)


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (PLAIN, PLAIN, []),
        (PLAIN, replace(PLAIN, crop=64), ["--crop not given for a, 64 for b"]),
        (replace(PLAIN, flip=True), PLAIN, ["--flip given for a, not given for b"]),
        (
            replace(PLAIN, sky=SKY),
            replace(PLAIN, sky=replace(SKY, size=4.0, scale=0.05, north_up=True)),
            [
                "--size 2.4arcsec for a, 4arcsec for b",
                "--scale not given for a, 0.05arcsec for b",
                "--north-up not given for a, given for b",
            ],
        ),
        (
            replace(PLAIN, stretch=Stretch(limits=((0, 255),))),
            PLAIN,
            ["--limits given for a, not given for b", "--percentiles not given for a, 1,99 for b"],
        ),
        (
            replace(PLAIN, stretch=Stretch(kind="asinh", softening=0.2)),
            replace(PLAIN, stretch=Stretch(kind="lupton")),
            ["--stretch asinh for a, lupton for b", "--softening 0.2 for a, not given for b"],
        ),
        # What two surveys have of their own
        (
            replace(PLAIN, stretch=Stretch(limits=((0, 255),), bands=(2, 1, 0)), keep=("z",)),
            replace(PLAIN, stretch=Stretch(limits=((0, 9),), bands=("r", "g", "b"))),
            [],
        ),
    ],
)
def test_options_that_showed_other_pixels(
    one: ReadOptions, other: ReadOptions, said: list[str]
) -> None:
    assert read_otherwise(one, other, ("a", "b")) == said


@pytest.mark.parametrize(
    "told", [None, "[", b"\xff", "[]", {"stretch": {"kind": 3}}, {"sky": {"a": 1}}]
)
def test_files_that_do_not_say(told: Any) -> None:
    assert recorded_options(told) is None


@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors", "parquet"])
def test_a_file_of_any_format_tells_its_options(
    service_url: str, tmp_path: Path, ending: str
) -> None:
    images = np.random.default_rng(0).random((3, 3, SIZE, SIZE), np.float32)
    np.save(tmp_path / "images.npy", images)
    output = tmp_path / f"z.{ending}"
    source = str(tmp_path / "images.npy")
    given = ["--limits", "0:2", "--stretch", "asinh", "--quiet"]
    assert run(["embed", "--url", service_url, source, *given, "-o", str(output)]) == 0
    found = read_embeddings(str(output)).options
    assert found is not None
    assert found.stretch == Stretch(kind="asinh", limits=((0, 2),))


def written(path: Path, options: ReadOptions) -> str:
    """An embedding file as of `vim-embed embed` with these options."""
    rng = np.random.default_rng(0)
    np.save(path, rng.normal(size=(40, 8)).astype(np.float32))
    ids = [f"s{row}" for row in range(40)]
    told = {"ids": ids, "provenance": {}, "options": options.identity()}
    path.with_name(path.name + ".json").write_text(json.dumps(told))
    return str(path)


def test_score_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = written(tmp_path / "a.npy", replace(PLAIN, sky=SKY))
    second = written(tmp_path / "b.npy", replace(PLAIN, sky=replace(SKY, size=4.0)))
    assert read_embeddings(first).options == replace(PLAIN, sky=SKY)
    assert run(["score", first, second, "-k", "5"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    unlike = f"--size 2.4arcsec for {first}, 4arcsec for {second}"
    assert f"read with other options: {unlike}." in said
    assert run(["score", first, second, "-k", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["read_otherwise"] == [unlike]
    assert run(["score", first, first, "-k", "5"]) == 0
    assert "other options" not in capsys.readouterr().out


def test_compare_and_table_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, stretch in (("a", Stretch()), ("b", Stretch()), ("c", Stretch(kind="asinh"))):
        written(Path(f"{name}.npy"), replace(PLAIN, stretch=stretch))
    said = "other options: --stretch not given for a.npy, asinh for c.npy."
    assert run(["compare", "one=a.npy,b.npy", "two=a.npy,c.npy", "-k", "5"]) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    given = ["m:x=a.npy", "m:y=b.npy", "m:z=c.npy"]
    assert run(["table", *given, "-k", "5", "-o", "t.md"]) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    assert said in Path("t.md").read_text()
    assert run(["table", *given[:2], "-k", "5"]) == 0
    assert "other options" not in capsys.readouterr().out
