"""A run replaces what an earlier one wrote, and no file of anybody else's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from safetensors.numpy import save_file

from support.embedding_files import write_embeddings
from vim_embed_client.bulk.checkpoint import folder_of
from vim_embed_client.bulk.output_checks import check_output
from vim_embed_client.bulk.outputs import skipped_list
from vim_embed_client.cli.main import run
from vim_embed_client.errors import ConfigurationError
from vim_embed_client.results import Provenance

from .survey import pictures

ENDINGS = [".npy", ".npz", ".parquet", ".safetensors"]
PIXELS = pictures(2, seed=1)
FIX = "is there and was not written by vim-embed embed: give another -o, or remove it"
ORIGIN = Provenance(model="m", weights_digest="sha256:00")

Write = Callable[[Path], Any]


def ours(path: Path) -> None:
    write_embeddings(path, np.ones((2, 3), np.float32), ["a", "b"], ORIGIN)


def _table(path: Path, **about: str) -> None:
    pyarrow.parquet.write_table(pa.table({"id": ["a"]}).replace_schema_metadata(about), path)


FOREIGN: dict[str, tuple[str, Write]] = {
    "images": (".npy", lambda path: np.save(path, PIXELS)),
    "named images": (".npz", lambda path: np.savez(path, images=PIXELS)),
    "images and another's metadata": (".npz", lambda path: np.savez(path, metadata='{"a": 1}')),
    "images and objects": (".npz", lambda path: np.savez(path, metadata=np.array([{}]))),
    "a catalogue": (".parquet", _table),
    "pandas's table": (".parquet", lambda path: _table(path, pandas="{}")),
    "cut-outs": (".parquet", lambda path: _table(path, **{"vim_embed.cutouts": "1"})),
    "tensors": (".safetensors", lambda path: save_file({"x": PIXELS}, path)),
    "weights": (".safetensors", lambda path: save_file({"x": PIXELS}, path, {"recipe": "{}"})),
    "an answer of the service": (
        ".safetensors", lambda path: save_file({"x": PIXELS}, path, {"weights_digest": ""}),
    ),
    **{f"text in {one}": (one, lambda path: path.write_text("notes")) for one in ENDINGS},
    "a long header": (".safetensors", lambda path: path.write_bytes(b"\xff" * 16)),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_files_of_others_are_refused(tmp_path: Path, case: str) -> None:
    ending, write = FOREIGN[case]
    path = tmp_path / f"o{ending}"
    write(path)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=f"^{re.escape(f'{path} {FIX}')}$"):
        check_output(path)
    assert path.read_bytes() == before


def _newer_array(path: Path) -> None:
    ours(path)
    np.save(path, PIXELS)


BESIDE: dict[str, tuple[str, str, Write]] = {
    "an array beside an older sidecar": (".npy", "", _newer_array),
    "a sidecar": (".npy", ".json", lambda path: path.write_text('{"ids": []}')),
    "a sidecar that is no JSON": (".npz", ".json", lambda path: path.write_text("notes")),
    "a list": (".parquet", ".skipped.jsonl", lambda path: path.write_text('{"id": 1}\n')),
}


@pytest.mark.parametrize("case", BESIDE)
def test_files_beside_the_output_count_too(tmp_path: Path, case: str) -> None:
    ending, beside, write = BESIDE[case]
    path = tmp_path / f"o{ending}{beside}"
    write(path)
    with pytest.raises(ConfigurationError, match=re.escape(f"{path} {FIX}")):
        check_output(tmp_path / f"o{ending}")


def _unfinished(path: Path) -> None:
    np.save(path, PIXELS)
    folder_of(path).mkdir()
    (folder_of(path) / "manifest.jsonl").touch()


def _with_skips(path: Path) -> None:
    ours(path)
    skipped_list(path).write_text('{"id": "a", "reason": "b", "fault": true}\n')


REPLACED: dict[str, tuple[str, Write]] = {
    **{f"ours in {one}": (one, ours) for one in ENDINGS},
    **{f"an empty {one}": (one, lambda path: path.touch()) for one in ENDINGS},
    "a list of skips": (".npz", _with_skips),
    "an unfinished run": (".npy", _unfinished),
    "a joined table": (".parquet", lambda path: _table(path, **{"vim_embed.provenances": "[]"})),
    "JSON beside a table": (
        ".parquet", lambda path: path.with_name("o.parquet.json").write_text("mine"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REPLACED)
def test_what_an_earlier_run_wrote_may_be_replaced(tmp_path: Path, case: str) -> None:
    ending, write = REPLACED[case]
    write(tmp_path / f"o{ending}")
    check_output(tmp_path / f"o{ending}")


@pytest.mark.parametrize("sources", [["a.npy", "b.npy"], ["*.npy"], ["."]])
def test_images_are_never_replaced_by_their_embeddings(
    service_url: str,
    tmp_path: Path,
    sources: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.npy", "b.npy"):
        np.save(name, PIXELS)
    before = Path("a.npy").read_bytes()
    command = ["embed", "--url", service_url, "--quiet", *sources, "-o"]
    assert run([*command, "a.npy"]) == 2
    assert f"a.npy {FIX}" in capsys.readouterr().err
    assert Path("a.npy").read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.npy", "b.npy"]
    for _ in range(2):  # the second time, the pattern and the folder find the output of the first
        assert run([*command, "o.npy"]) == 0
        assert len(np.load("o.npy")) == 4
