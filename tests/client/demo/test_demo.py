"""`vim-embed demo`: against a fake service, and once with a real server of its own."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from client.fake_service import FakeService, embed_rows, refuse, serve
from vim_embed_client import Client
from vim_embed_client.cli.main import run
from vim_embed_client.demo import flow
from vim_embed_client.demo.figure import demo_figure
from vim_embed_client.demo.stamps import Sources
from vim_embed_client.errors import ProvenanceChangedError
from vim_embed_client.figures.style import save
from vim_embed_client.formats import parse_safetensors
from vim_embed_client.results import ModelEntry
from vim_embed_client.scoring.mknn import mknn

COUNT = 32


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> FakeService:
    monkeypatch.delenv("VIM_EMBED_API_KEY", raising=False)
    return FakeService()


@pytest.fixture(autouse=True)
def _found_once(
    monkeypatch: pytest.MonkeyPatch, sources: Sources, ground: NDArray[np.uint8]
) -> None:
    """Every run of the demo finds the same sources, and sees them from the ground with seed 0."""
    monkeypatch.setattr(flow, "find_sources", lambda picture: sources)
    monkeypatch.setattr(flow, "ground_view", lambda picture, seed: {0: ground}[seed])


@pytest.fixture
def url(service: FakeService) -> Iterator[str]:
    with serve(service.app()) as url:
        yield url


@pytest.fixture
def entry(url: str) -> ModelEntry:
    with Client(url) as client:
        return client.model("vim-tiny")


@pytest.fixture
def views() -> flow.Views:
    entry: Any = {"preprocessing": {"image_size": 16, "interpolation": "bicubic"}}
    return flow.make_views(COUNT, entry)


def embed(url: str, entry: ModelEntry, views: flow.Views, **options: Any) -> flow.Result:
    with Client(url, rows_per_request=8) as client:
        return flow.run(client, entry, views, **options)


def read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    return parse_safetensors(path.read_bytes())


def test_both_views_are_embedded_in_order(url: str, entry: ModelEntry, views: flow.Views) -> None:
    done: list[tuple[int, int]] = []
    result = embed(url, entry, views, on_progress=lambda *rows: done.append(rows))
    np.testing.assert_allclose(result.space, embed_rows(views.space), rtol=1e-6)
    np.testing.assert_allclose(result.ground, embed_rows(views.ground), rtol=1e-6)
    assert result.score.mknn == mknn(result.space, result.ground, 10)
    assert result.score in result.curve
    assert done[-1] == (2 * COUNT, 2 * COUNT)
    assert done == sorted(done)


def test_views_of_two_models_are_not_compared(
    service: FakeService, url: str, entry: ModelEntry, views: flow.Views
) -> None:
    def change(done: int, total: int) -> None:
        if done == COUNT:
            service.provenance["Weights-Digest"] = "sha256:other"

    with pytest.raises(ProvenanceChangedError, match="weights_digest"):
        embed(url, entry, views, on_progress=change)


@pytest.mark.parametrize("random", [True, False])
def test_the_title_says_which_weights_answered(
    service: FakeService, url: str, entry: ModelEntry, views: flow.Views, random: bool
) -> None:
    service.provenance |= {"Random-Weights": str(random).lower(), "Revision": "03e58f5b1fd8bc0"}
    entry["weights"] |= {"random": not random, "source": "hustvl/Vim-tiny-midclstok"}
    figure = demo_figure(embed(url, entry, views))
    title = figure.get_suptitle()
    assert ("RANDOM WEIGHTS, not a scientific result" in title) is random
    assert ("hustvl/Vim-tiny-midclstok at 03e58f5b1fd8" in title) is not random


def test_a_long_source_fits_the_title(url: str, entry: ModelEntry, views: flow.Views) -> None:
    result = embed(url, entry, views)
    provenance = replace(result.provenance, random_weights=False, revision="")
    long = replace(result, source="/data/" + "deep/" * 40 + "vim.pth", provenance=provenance)
    title = demo_figure(long).get_suptitle()
    assert len(title) < 120
    assert title.endswith("vim.pth")


def test_the_figure_draws_at_any_k(
    tmp_path: Path, url: str, entry: ModelEntry, views: flow.Views
) -> None:
    for k in (1, 31):
        save(demo_figure(embed(url, entry, views, k=k)), tmp_path / "figure.png")
        with Image.open(tmp_path / "figure.png") as image:
            assert image.width > 2000
            assert np.asarray(image.convert("L")).std() > 20


def demo(url: str, output: Path, *flags: str) -> int:
    return run(["demo", "--url", url, "--count", str(COUNT), "-o", str(output), *flags])


def test_the_command_writes_everything(url: str, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "new" / "folder"
    assert demo(url, output) == 0
    printed = capsys.readouterr().out
    assert "RANDOM WEIGHTS: NOT A SCIENTIFIC RESULT" in printed
    assert "images/s" in printed
    assert "Chance" in printed
    assert f"{2 * COUNT}/{2 * COUNT} images" in printed
    arrays, about = read(output / "embeddings.safetensors")
    summary = json.loads((output / "summary.json").read_text())
    assert arrays["space"].shape == arrays["ground"].shape == (COUNT, 6)
    assert arrays["positions"].shape == (COUNT, 2)
    assert len(set(json.loads(about["ids"]))) == COUNT
    assert about["random_weights"] == "true"
    assert json.loads(about["provenance"]) == summary["provenance"]
    assert summary["score"]["mknn"] == mknn(arrays["space"], arrays["ground"], 10)
    assert summary["score"]["chance"] == 10 / (COUNT - 1)
    assert (output / "figure.png").stat().st_size > 100_000


def test_the_printed_json_is_what_scoring_the_output_gives(
    url: str, tmp_path: Path, capsys: Any
) -> None:
    assert demo(url, tmp_path, "--json", "--k", "5") == 0
    captured = capsys.readouterr()
    shown = json.loads(captured.out)
    assert shown["random_weights"] is True
    assert Path(shown["files"]["figure"]).exists()
    assert "NOT A SCIENTIFIC RESULT" in captured.err
    file = shown["files"]["embeddings"]
    assert run(["score", f"{file}:space", f"{file}:ground", "-k", "5", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["scores"] == [shown["score"]]
    assert scored["random_weights"] is True


def test_no_banner_for_real_weights(
    service: FakeService, url: str, tmp_path: Path, capsys: Any
) -> None:
    service.provenance["Random-Weights"] = "false"
    assert demo(url, tmp_path) == 0
    assert "NOT A SCIENTIFIC RESULT" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weights", "random"], "up to the service at --url"),
        (["--k", "32"], "needs more than 32 sources"),
        (["--count", "100000"], "can be found in the picture: lower --count"),
        (["--count", "4"], "--count"),
        (["--model", "vim-huge"], "no such model"),
    ],
)
def test_wrong_usage_is_explained(
    url: str, tmp_path: Path, capsys: Any, flags: list[str], message: str
) -> None:
    assert demo(url, tmp_path, *flags) != 0
    assert message in capsys.readouterr().err


def test_a_failing_service_is_an_error(
    service: FakeService, url: str, tmp_path: Path, capsys: Any
) -> None:
    service.always = refuse(422, "invalid_input", "no such pixels")
    assert demo(url, tmp_path) == 1
    assert "no such pixels" in capsys.readouterr().err
    assert not (tmp_path / "summary.json").exists()


def test_a_missing_extra_is_named(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "skimage" else find(name)
    )
    assert demo(url, tmp_path) == 1
    assert 'scikit-image: pip install "vim-embed[demo]"' in capsys.readouterr().err


def test_the_real_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Its own server, and no released weights to be had: the packaged ones, named everywhere."""
    pytest.importorskip("torch")
    pytest.importorskip("fastapi")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.delenv("VIM_EMBED_MODELS", raising=False)
    output = tmp_path / "output"
    assert run(["demo", "--count", "16", "--k", "5", "--device", "cpu", "-o", str(output)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "RANDOM" not in printed
    assert "Not vim-tiny: hustvl/Vim-tiny-midclstok is not in the local Hub cache" in printed
    assert "goes on with vim-micro; with a file of vim-tiny, it is `vim-embed demo --we" in printed
    assert "a demonstration, not a scientific instrument" in printed
    named = "weights packaged with vim-embed, a demonstration"
    assert f"vim-micro, {named}" in printed
    arrays, about = read(output / "embeddings.safetensors")
    assert arrays["space"].shape == (16, 128)
    provenance = json.loads(about["provenance"])
    assert (provenance["model"], provenance["random_weights"]) == ("vim-micro", False)
    assert (about["weights"], about["random_weights"]) == (named, "false")
    assert json.loads((output / "summary.json").read_text())["weights"] == named
