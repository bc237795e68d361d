"""Layers and tokens in bulk, from a real model: right in every output, and the same after kills."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from support.fixtures_vim import DATA
from support.serving import running
from vim_embed import load_model
from vim_embed.engines.build import build_engines
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client import Client
from vim_embed_client.bulk import outputs, run
from vim_embed_client.bulk.checkpoint import Checkpoint
from vim_embed_client.bulk.row_shape import NamedShape
from vim_embed_client.bulk.sender import BatchSender
from vim_embed_client.cli.common import SOME_LEFT_OUT
from vim_embed_client.cli.main import run as vim_embed
from vim_embed_client.errors import ConfigurationError
from vim_embed_client.scoring.embedding_files import read_embeddings, vector_names

from .survey import png

MODEL = DATA / "vim_micro.pth"
PIXELS = np.random.default_rng(0).integers(0, 256, (11, 3, 64, 64), dtype=np.uint8)
OUTPUTS = [".npy", ".npz", ".parquet", ".safetensors"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = Settings(models=(f"micro={MODEL}",), device="cpu")
    with running(create_app(settings, build_engines(settings))) as address:
        yield address


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model("micro", MODEL, device="cpu")


@pytest.fixture
def survey(tmp_path: Path) -> Path:
    """An array of ten images and a PNG."""
    folder = tmp_path / "survey"
    folder.mkdir()
    np.save(folder / "a.npy", PIXELS[:10])
    (folder / "b.png").write_bytes(png(PIXELS[10]))
    return folder


def embed(url: str, survey: Path, output: Path, *options: str) -> int:
    return vim_embed(["embed", str(survey), "-o", str(output), "--url", url, "--exact", *options])


@pytest.mark.parametrize("ending", OUTPUTS)
@pytest.mark.parametrize("granularity", ["blocks", "all"])
def test_a_column_of_each_layer(
    url: str, model: Any, survey: Path, tmp_path: Path, ending: str, granularity: str
) -> None:
    output = tmp_path / f"o{ending}"
    code = embed(url, survey, output, "--layers", granularity, "--quiet")
    if (ending, granularity) == (".npy", "all"):
        assert code == 2
        assert not output.exists()
        return
    assert code == 0
    wanted = model.embed_layers(PIXELS, granularity, exact=True)
    names = [name.rpartition(":")[2] for name in vector_names(str(output))]
    assert names == list(wanted)
    for name, layer in wanted.items():
        found = read_embeddings(f"{output}:{name}")
        np.testing.assert_array_equal(found.embeddings, layer)
        assert found.ids == [*(f"{survey}/a.npy#{row}" for row in range(10)), f"{survey}/b.png"]
        assert (found.model, found.provenance["exact"]) in (("micro", True), ("micro", "true"))


def test_columns_of_parquet_are_named_as_the_host_names_them(
    url: str, survey: Path, tmp_path: Path
) -> None:
    output = tmp_path / "o.parquet"
    assert embed(url, survey, output, "--layers", "blocks", "--mode", "hsc", "--quiet") == 0
    names = pq.read_schema(output).names
    assert (names[0], names[-2:]) == ("patch_embed_hsc", ["last_hidden_state_hsc", "id"])
    assert json.loads(pq.read_schema(output).metadata[b"vim_embed.layers"])[1] == "layers.0"


@pytest.mark.parametrize("ending", OUTPUTS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_all_tokens_with_their_grid(
    url: str, model: Any, survey: Path, tmp_path: Path, ending: str, dtype: str
) -> None:
    output = tmp_path / f"o{ending}"
    options = ["--pooling", "tokens", "--dtype", dtype, "--quiet"]
    assert embed(url, survey, output, *options) == 0
    wanted = model.embed(PIXELS, "tokens", exact=True).astype(dtype)
    found, grid = _tokens(output)
    np.testing.assert_array_equal(found, wanted)
    assert (found.dtype, grid) == (np.dtype(dtype), "4,4")


def _tokens(path: Path) -> tuple[Any, str]:
    if path.suffix == ".npy":
        grid = json.loads(path.with_name(path.name + ".json").read_text())["provenance"]["grid"]
        return np.load(path), grid
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["embedding"], json.loads(str(arrays["metadata"]))["provenance"]["grid"]
    if path.suffix == ".safetensors":
        with safe_open(path, "numpy") as file:
            return file.get_tensor("embedding"), file.metadata()["grid"]
    table = pq.read_table(path)
    lists = table["embedding"].combine_chunks()
    width = lists.type.value_type.list_size
    flat = lists.flatten().flatten().to_numpy(zero_copy_only=False)
    provenance = json.loads(table.schema.metadata[b"vim_embed.provenance"])
    return flat.reshape(len(lists), -1, width), provenance["grid"]


@pytest.mark.parametrize("ending", OUTPUTS)
@pytest.mark.parametrize("what", [("--layers", "blocks"), ("--pooling", "tokens"), ()])
def test_a_run_stopped_twice_gives_the_bytes_of_one_that_was_not(
    url: str, survey: Path, tmp_path: Path, monkeypatch: Any, ending: str, what: tuple[str, ...]
) -> None:
    options = [*what, "--batch-rows", "2", "--part-rows", "3", "--quiet"]
    whole, stopped = tmp_path / f"whole{ending}", tmp_path / f"stopped{ending}"
    monkeypatch.setattr(outputs, "_GROUP_ROWS", 4)
    assert embed(url, survey, whole, *options) == 0
    for rows in (3, 4):
        with monkeypatch.context() as patched:
            patched.setattr(run, "Checkpoint", _stopping_after(rows))
            assert embed(url, survey, stopped, *options) == 130
        assert not stopped.exists()
    assert embed(url, survey, stopped, *options) == 0
    assert stopped.read_bytes() == whole.read_bytes()


def _stopping_after(rows: int) -> Callable[..., Checkpoint]:
    class Stopping(Checkpoint):
        """Ends as a kill does: what was not committed before is lost."""

        def add(self, result: Any) -> None:
            nonlocal rows
            rows -= 1
            if rows < 0:
                self._open = []
                raise KeyboardInterrupt
            super().add(result)

    return Stopping


def test_images_of_another_size_have_other_tokens_and_are_left_out(
    url: str, survey: Path, tmp_path: Path, model: Any
) -> None:
    """The first row says how many; rows of that many are embedded, the others named."""
    np.save(survey / "aa.npy", np.zeros((2, 3, 80, 48), np.float32))
    output = tmp_path / "o.npy"
    options = ["--pooling", "tokens", "--on-error", "skip", "--quiet"]
    assert embed(url, survey, output, *options) == SOME_LEFT_OUT
    found, _ = _tokens(output)
    np.testing.assert_array_equal(found, model.embed(PIXELS, "tokens", exact=True))
    about = json.loads((tmp_path / "o.npy.json").read_text())
    assert [one["id"] for one in about["skipped"]] == [f"{survey}/aa.npy#{row}" for row in (0, 1)]
    assert "it has 16 tokens, and the first row 17" in about["skipped"][0]["reason"]
    np.save(survey / "aa.npy", np.zeros((2, 3, 64, 64), np.float32))
    assert embed(url, survey, output, "--pooling", "tokens", "--quiet") == 0
    assert len(np.load(output)) == 13


def test_other_layers_than_those_of_finished_rows_are_refused(
    url: str, survey: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    output = tmp_path / "o.npz"
    with monkeypatch.context() as patched:
        patched.setattr(run, "Checkpoint", _stopping_after(4))
        options = ["--layers", "blocks", "--part-rows", "3", "--batch-rows", "1", "--quiet"]
        assert embed(url, survey, output, *options) == 130
    assert embed(url, survey, output, "--layers", "leaves", "--quiet") == 4


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--layers", "blocks", "--pooling", "tokens"], "of the final layer"),
        (["--layers", "blocks", "--pooling", "features"], "of the final layer"),
        (["--mode", "hsc"], "--mode has an effect on --layers in .parquet alone"),
        (["--mode", "a_b", "--layers", "blocks"], "must be a word without _"),
    ],
)
def test_options_without_a_place_beside_each_other(
    survey: Path, tmp_path: Path, capsys: Any, options: list[str], reason: str
) -> None:
    assert embed("http://127.0.0.1:9", survey, tmp_path / "o.parquet", *options) == 2
    assert reason in " ".join(capsys.readouterr().err.split())


def test_answers_are_kept_small(url: str, survey: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Fewer rows a request where each has many numbers, and parts by their bytes."""
    sent: list[int] = []
    real = BatchSender.send

    def send(self: Any, rows: Any, **rest: Any) -> Any:
        sent.append(len(rows))
        return real(self, rows, **rest)

    row_bytes = 17 * load_model("micro", MODEL, device="cpu").info.dim * 4
    monkeypatch.setattr(BatchSender, "send", send)
    monkeypatch.setattr(run, "_ANSWER_BYTES", 2 * row_bytes + 5)
    monkeypatch.setattr("vim_embed_client.bulk.checkpoint._PART_BYTES", 3 * row_bytes)
    finished: list[int] = []
    monkeypatch.setattr(Checkpoint, "append", _noting(finished))
    assert embed(url, survey, tmp_path / "o.npy", "--pooling", "tokens", "--quiet") == 0
    assert sorted(sent) == [1, 2, 2, 2, 2, 2]
    assert finished == [3, 3, 3, 2]


def _noting(finished: list[int]) -> Any:
    real = Checkpoint.append

    def append(self: Checkpoint, part: Any) -> None:
        finished.append(part.rows)
        real(self, part)

    return append


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_tokens_of_64_images_over_http_are_those_in_process(
    url: str, model: Any, dtype: str
) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (64, 3, 64, 64), dtype=np.uint8)
    wanted = model.embed(pixels, "tokens", exact=True).astype(dtype)
    with Client(url, rows_per_request=24) as client:
        found = client.embed(pixels, pooling="tokens", dtype=dtype, exact=True)
    np.testing.assert_array_equal(found.embeddings, wanted)
    assert (found.embeddings.dtype, found.grid) == (np.dtype(dtype), (4, 4))


@pytest.mark.parametrize(
    ("ending", "mode", "keep", "taken"),
    [
        (".parquet", "hsc", "layers.0_hsc", True),
        (".parquet", "hsc", "layers.0", False),
        (".parquet", "", "layers.0", True),
        (".npz", "hsc", "layers.0_hsc", False),
    ],
)
def test_a_kept_column_does_not_take_the_place_of_a_layer(
    ending: str, mode: str, keep: str, taken: bool
) -> None:
    shape = tuple(NamedShape(f"layers.{i}", (4,)) for i in range(2))
    path = Path(f"o{ending}")
    if not taken:
        outputs.check_holds(path, shape, mode, ["z", keep])
        return
    with pytest.raises(ConfigurationError, match=f"has a layer '{keep}'.*rename it in the cat"):
        outputs.check_holds(path, shape, mode, ["z", keep])
