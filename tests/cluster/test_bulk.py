"""Ray Data over files: complete, in order, the same table as the client's, and resumable."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from PIL import Image

from support.cluster_parts import arithmetic, arithmetic_embeddings, wary
from support.fixtures_vim import DATA, banded
from vim_embed.settings import Settings
from vim_embed.types.model_info import EmbedOptions
from vim_embed_client.bulk.sources.registry import ReadOptions
from vim_embed_client.errors import InputError, ResumeError
from vim_embed_pixels.stretch import Stretch, to_rgb

pytest.importorskip("ray", reason='needs the extra: pip install "vim-embed[ray]"')
pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("ray_node"),
]

SETTINGS = Settings(models=("arithmetic=unused",))
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)


@pytest.fixture
def survey(tmp_path: Path) -> Path:
    folder = tmp_path / "survey"
    folder.mkdir()
    np.save(folder / "a.npy", PIXELS[:21])
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(PIXELS[21:30])
    pq.write_table(pa.table({"image": tensors}), folder / "b.parquet", row_group_size=4)
    np.save(folder / "c.npy", PIXELS[30:])
    return folder


def embed(sources: Path, output: Path, **others: Any) -> Any:
    from vim_embed.cluster.bulk import Job, embed_sources
    from vim_embed.cluster.settings import ClusterSettings

    job = Job(
        settings=SETTINGS,
        options=others.pop("options", EmbedOptions()),
        mode=others.pop("mode", ""),
        read_options=others.pop("read_options", ReadOptions()),
        on_error=others.pop("on_error", "fail"),
    )
    cluster = ClusterSettings(cpus=1, max_replicas=2, min_replicas=2)
    return embed_sources(
        [str(sources)],
        output,
        job,
        cluster,
        part_rows=8,
        make_engines=others.pop("make_engines", arithmetic),
        **others,
    )


def column(table: Any) -> np.ndarray[Any, Any]:
    return np.array(table["embedding"].to_pylist(), np.float32)


def test_every_row_once_and_in_order(survey: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    summary = embed(survey, out)
    table = pq.read_table(out)
    assert (summary.rows, summary.left_out.skipped.count, summary.resumed) == (40, 0, 0)
    np.testing.assert_array_equal(column(table), arithmetic_embeddings(PIXELS))
    files = [("a.npy", 21), ("b.parquet", 9), ("c.npy", 10)]
    assert table["id"].to_pylist() == [f"{survey / f}#{i}" for f, n in files for i in range(n)]
    assert not out.with_name("out.parquet.parts").exists()


def test_it_goes_on_where_it_was_interrupted(survey: Path, tmp_path: Path) -> None:
    out, refused = tmp_path / "out.parquet", PIXELS[33]
    np.save(tmp_path / "refused.npy", refused)
    with pytest.raises(InputError, match=r"c\.npy#3"):
        embed(survey, out, make_engines=wary(str(tmp_path / "refused.npy")))
    parts = out.with_name("out.parquet.parts")
    manifest = parts / "manifest.jsonl"
    finished = manifest.read_text().splitlines()[1:]
    assert finished
    manifest.write_text(manifest.read_text() + '{"number": 5, "ro')  # as power was lost
    torn = parts / f"{json.loads(finished[0])['number']:06d}.npy"
    torn.write_bytes(torn.read_bytes()[:-1])
    with pytest.raises(ResumeError, match="--restart"):
        embed(survey, out, on_error="skip")
    summary = embed(survey, out)
    whole = sum(json.loads(line)["rows"] for line in finished[1:])
    assert (summary.rows, summary.resumed) == (40, whole)
    np.testing.assert_array_equal(column(pq.read_table(out)), arithmetic_embeddings(PIXELS))
    assert not parts.exists()


def test_a_column_of_each_layer(survey: Path, tmp_path: Path) -> None:
    options, out = EmbedOptions(layers="blocks"), tmp_path / "out.parquet"
    summary = embed(survey, out, options=options, mode="hsc")
    table = pq.read_table(out)
    assert table.column_names == ["first_hsc", "last_hidden_state_hsc", "id"]
    wanted = arithmetic_embeddings(PIXELS)
    for name, layer in (("first_hsc", -wanted), ("last_hidden_state_hsc", wanted)):
        np.testing.assert_array_equal(np.array(table[name].to_pylist(), "f4"), layer)
    assert (summary.rows, summary.dim) == (40, 8)


def test_what_cannot_be_embedded_is_named_or_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(5):
        file = io.BytesIO()
        Image.fromarray(PIXELS[i].transpose(1, 2, 0)).save(file, "PNG")
        data = b"no image" if i == 3 else file.getvalue()
        (folder / f"{i}.png").write_bytes(data)
    with pytest.raises(InputError, match=r"3\.png"):
        embed(folder, tmp_path / "fails.parquet")
    summary = embed(folder, tmp_path / "out.parquet", on_error="skip")
    assert (summary.rows, summary.left_out.skipped.count) == (4, 1)
    table = pq.read_table(tmp_path / "out.parquet")
    np.testing.assert_array_equal(column(table), arithmetic_embeddings(PIXELS[[0, 1, 2, 4]]))
    (left_out,) = json.loads(table.schema.metadata[b"vim_embed.skipped"])
    assert left_out["id"] == str(folder / "3.png")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda f: (f / "x.npy").write_bytes(b"no array"), "x.npy: "),
        (lambda f: pq.write_table(pa.table({"n": [1]}), f / "x.parquet"), "no column seems to"),
        (lambda f: None, "no images, arrays or shards"),
    ],
)
def test_bad_sources_say_so(make: Any, says: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    make(folder)
    with pytest.raises(InputError, match=says):
        embed(folder, tmp_path / "out.parquet")


def test_options_without_effect_are_refused(survey: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--hdu would have no effect"):
        embed(survey, tmp_path / "out.parquet", read_options=ReadOptions(hdus=("SCI",)))


@pytest.mark.soak
def test_the_command_embeds_with_a_real_vim(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from vim_embed import load_model
    from vim_embed.cluster.bulk import main

    pixels = np.random.default_rng(1).integers(0, 256, (9, 3, 64, 64), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    weights, out = DATA / "vim_micro.pth", tmp_path / "out.parquet"
    arguments = [str(tmp_path / "a.npy"), "-o", str(out), "--model", f"micro={weights}"]
    done = CliRunner().invoke(main, [*arguments, "--part-rows", "4"])
    assert done.exit_code == 0, done.output
    assert "9 rows, 0 of an earlier run; 0 skipped, 0 passed over" in done.output
    model = load_model("micro", weights, device="cpu")
    table = pq.read_table(out)
    np.testing.assert_allclose(column(table), model.embed(pixels), rtol=1e-5, atol=1e-6)
    about = json.loads(table.schema.metadata[b"vim_embed.provenance"])
    assert about["weights_digest"] == model.info.weights.digest


@pytest.mark.soak
def test_the_command_writes_tokens_poolings_and_bands(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from vim_embed import load_model
    from vim_embed.cluster.bulk import main

    weights = banded(tmp_path, 5)
    model = load_model("five", weights, device="cpu")
    pixels = np.random.default_rng(1).standard_normal((5, 5, 64, 64)).astype("f4")
    np.save(tmp_path / "a.npy", pixels)
    fits.PrimaryHDU(np.abs(pixels[0]), fits.Header({"BANDS": "grizy"})).writeto(tmp_path / "b.fits")
    out = tmp_path / "out.npy"

    def embedded(source: str, *options: str) -> Any:
        arguments = [str(tmp_path / source), "-o", str(out), "--model", f"five={weights}"]
        done = CliRunner().invoke(main, [*arguments, "--part-rows", "2", "--overwrite", *options])
        assert done.exit_code == 0, done.output
        return np.load(out), json.loads((tmp_path / "out.npy.json").read_text())

    found, about = embedded("a.npy", "--pooling", "tokens", "--dtype", "float16")
    assert (found.dtype, found.shape[:2]) == (np.dtype("f2"), (5, 17))
    np.testing.assert_allclose(found, model.embed(pixels, "tokens"), rtol=2e-3, atol=2e-3)
    assert about["provenance"]["grid"] == "4,4"
    found, about = embedded("a.npy", "--pooling", "max")
    np.testing.assert_allclose(found, model.embed(pixels, "max"), rtol=1e-5, atol=1e-6)
    assert about["provenance"]["pooling"] == "max"
    scale = ",".join(["0.5"] * 5)
    found, _ = embedded("b.fits", "--bands", "y,z,i,r,g", "--mean", scale, "--std", scale)
    levels = to_rgb(np.abs(pixels[0])[::-1], Stretch(channels=5))[None, :, ::-1]
    wanted = model.embed(((levels / 255 - 0.5) / 0.5).astype("f4"))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.soak
def test_the_command_says_why_a_model_cannot_be_loaded(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from vim_embed.cluster.bulk import main

    np.save(tmp_path / "a.npy", PIXELS)
    (tmp_path / "bad.pth").write_bytes(b"bad")
    arguments = [str(tmp_path / "a.npy"), "-o", str(tmp_path / "out.parquet")]
    done = CliRunner().invoke(main, [*arguments, "--model", f"bad={tmp_path / 'bad.pth'}"])
    assert done.exit_code == 1
    (said,) = [line for line in done.output.splitlines() if line.startswith("Error:")]
    assert "bad.pth is not a readable checkpoint" in said  # Ray's own log is beside it
