"""Labels that contradict what a file says of itself, and those that do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.cli.main import run
from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.labels import Labelled, contradictions
from vim_embed_pixels.surveys import survey_stretch


def of_model(label: str, told: str) -> Labelled:
    """A file that says that it is of a model."""
    file = EmbeddingFile(label="a.npy", embeddings=np.eye(3), provenance={"model": told})
    return Labelled(file=file, model=label)


@pytest.mark.parametrize(
    ("label", "told", "contradicts"),
    [
        ("vim-tiny", "vim-micro", True),
        ("vim-tiny", "vim-tiny", False),
        ("ViM_Tiny", "vim-micro", True),
        ("vimtiny run 2", "vim-micro", True),
        ("our vim-tiny, 30 epochs", "vim-tiny", False),
        ("our vim-tiny, 30 epochs", "vim-base", True),
        # One name begins as another does
        ("vim-tiny", "vim-tiny-plus", True),
        ("vim-tiny-plus", "vim-tiny", True),
        ("vim-tiny-proxy", "vim-tiny", True),
        ("fastvim-base", "vim-base", True),
        ("Fast ViM base", "fastvim-base", False),
        ("videomamba-tiny-448", "videomamba-tiny", True),
        # Ids of the Hub
        ("hustvl/Vim-tiny-midclstok", "vim-tiny", False),
        ("Vim-tiny-midclstok", "vim-micro", True),
        ("hustvl/Vim-tiny", "vim-tiny-rope", False),
        ("vim-tiny", "hustvl/Vim-tiny-midclstok", False),
        ("vit-base-patch16-224-in21k", "vim-tiny-proxy", False),
        ("vit-base-patch16-224-in21k", "vim-tiny", True),
        # Weights of one's own
        ("vim-tiny", "vim-tiny-tuned", False),
        ("vim-tiny", "vim-tiny-float16", False),
        ("vim-small", "vim-tiny-tuned", True),
        ("vim-tiny", "ours", True),
        ("ours", "ours", False),
        # Free names
        ("ours", "vim-tiny", False),
        ("baseline", "vim-base", False),
        ("tiny", "vim-micro", False),
        ("vim", "vim-micro", False),
        ("vim-tiny2", "vim-micro", False),
        # Files of other tools
        ("vim-tiny", "", False),
    ],
)
def test_a_label_and_the_file_s_model(label: str, told: str, contradicts: bool) -> None:
    said = [f"a.npy is labelled {label}, but its model is {told}"] if contradicts else []
    assert contradictions([of_model(label, told)]) == said


@pytest.mark.parametrize(
    ("labelled", "wrong"),
    [
        ([("dino", "clip"), ("clip", "dino")], ["dino", "clip"]),
        ([("dino, new", "dino"), ("clip", "dino")], []),
        ([("clip", "dino"), ("x", "clip")], ["clip"]),
        ([("vim-tiny", "vim-tiny-tuned"), ("ours", "vim-tiny")], ["vim-tiny"]),
        ([("vim-tiny", "vim-tiny"), ("tuned", "vim-tiny-tuned")], []),
        ([("vim-tiny", "vim-micro"), ("vim-tiny", "vim-micro")], ["vim-tiny"]),
    ],
)
def test_other_files_make_names_known(labelled: list[tuple[str, str]], wrong: list[str]) -> None:
    found = contradictions([of_model(*one) for one in labelled])
    assert [one.split("labelled ")[1].split(", but")[0] for one in found] == wrong


@pytest.mark.parametrize(
    ("label", "option", "mode", "told"),
    [
        ("hsc", "jwst", "", "jwst"),
        ("hsc", "jwst@head", "", "jwst"),
        ("JWST deep", "jwst@head", "", None),
        ("ours", "jwst", "", None),
        ("hsc", None, "", None),
        ("hsc", None, "images", None),
        ("hsc", None, "cosmos-web", "cosmos-web"),
        ("hsc", "hsc", "jwst", "jwst"),
        ("cosmos", None, "cosmos-web", None),
    ],
)
def test_a_label_and_the_file_s_survey(
    label: str, option: str | None, mode: str, told: str | None
) -> None:
    options = ReadOptions(stretch=survey_stretch(option))
    file = EmbeddingFile(label="a.npy", embeddings=np.eye(3), options=options, mode=mode)
    said = [] if told is None else [f"a.npy is labelled {label}, but its survey is {told}"]
    assert contradictions([Labelled(file=file, model="ours", survey=label)]) == said


def written(name: str, model: str, survey: str | None = None) -> str:
    """A file as of `vim-embed embed`."""
    path = Path(name)
    np.save(path, np.random.default_rng(0).normal(size=(40, 8)))
    options = replace(ReadOptions(), stretch=survey_stretch(survey)).identity()
    told = {"ids": list(map(str, range(40))), "provenance": {"model": model}, "options": options}
    path.with_name(f"{name}.json").write_text(json.dumps(told))
    return name


@pytest.mark.parametrize("command", ["compare", "table"])
def test_the_commands_warn(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = written("a.npy", "vim-micro", "hsc"), written("b.npy", "vim-micro", "jwst")
    given = {
        "compare": [f"vim-tiny={a},{b}", f"ours={a},{b}"],
        "table": [f"vim-tiny:jwst={a}", f"vim-tiny:y={b}", f"ours:jwst={b}", f"ours:y={b}"],
    }[command]
    wrong = [f"{file} is labelled vim-tiny, but its model is vim-micro." for file in (a, b)]
    if command == "table":
        wrong.insert(1, "a.npy is labelled jwst, but its survey is hsc.")
    assert run([command, *given, "-k", "5", "-o", "t.md", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["mislabelled"] == wrong
    assert printed.err.splitlines() == [f"Warning: {each}" for each in wrong]
    written_to = Path("t.md").read_text()
    assert [f"- {each}" for each in wrong] == [
        line for line in written_to.splitlines() if "labelled" in line
    ]
    assert run([command, *given, "-k", "5"]) == 0
    assert capsys.readouterr().err.splitlines() == [f"Warning: {each}" for each in wrong]
    named = [each.replace("vim-tiny", "mine").replace("jwst", "x") for each in given]
    assert run([command, *named, "-k", "5"]) == 0
    assert capsys.readouterr().err == ""
