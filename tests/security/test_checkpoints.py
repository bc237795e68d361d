"""Hostile weights files: nothing runs, nothing fills the memory, and the message says why."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTModel

from support.fixtures_vim import DATA
from vim_embed import load_model
from vim_embed.errors import WeightsError
from vim_embed.weights import file_limits
from vim_embed.weights.checkpoint import read_checkpoint

MICRO = DATA / "vim_micro.pth"


class Boom:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def _state() -> dict[str, torch.Tensor]:
    return read_checkpoint(MICRO).state


def _refused(path: Path, says: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=says):
        load_model("mine", path, device="cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code(tmp_path: Path, legacy: bool) -> None:
    ran = tmp_path / "ran"
    torch.save(
        {"model": _state(), "args": Boom(ran)},
        tmp_path / "bad.pth",
        _use_new_zipfile_serialization=not legacy,
    )
    _refused(tmp_path / "bad.pth", "not unpickled")
    assert not ran.exists()
    (tmp_path / "bad.bin").write_bytes(pickle.dumps(Boom(ran), protocol=2))
    _refused(tmp_path / "bad.bin", "not unpickled")
    assert not ran.exists()


def test_a_vit_folder_whose_weights_would_run_code(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.save_pretrained(tmp_path)
    torch.save({**ViTModel(config).state_dict(), "boom": Boom(ran)}, tmp_path / "pytorch_model.bin")
    _refused(tmp_path, "ViT")
    assert not ran.exists()


def test_a_compressed_checkpoint(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(MICRO) as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
        packed.writestr("archive/data/999", bytes(300_000_000))
    assert (tmp_path / "bomb.pth").stat().st_size < 2_000_000
    _refused(tmp_path / "bomb.pth", "compressed")


def test_entries_that_share_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "overlap.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data/0", bytes(1_000_000))
        for number in range(1, 50):  # the same bytes under other names
            entry = zipfile.ZipInfo(f"archive/data/{number}")
            first = archive.infolist()[0]
            entry.header_offset = first.header_offset
            entry.file_size = entry.compress_size = first.file_size
            entry.CRC = first.CRC
            archive.filelist.append(entry)
            archive.NameToInfo[entry.filename] = entry
    _refused(path, "more than it has bytes")


def test_a_tensor_that_repeats_one_number(tmp_path: Path) -> None:
    state = _state()
    state["layers.0.mixer.A_log"] = torch.zeros(1, dtype=torch.float16).expand(10**6, 10**6)
    torch.save({"model": state}, tmp_path / "wide.pth")
    assert (tmp_path / "wide.pth").stat().st_size < 10_000_000
    _refused(tmp_path / "wide.pth", "claims more numbers")


@pytest.mark.parametrize(
    ("key", "says"), [("layers.999999999.norm.weight", "no usable"), ("layers.x.y", "not a Vim")]
)
def test_layers_without_end(tmp_path: Path, key: str, says: str) -> None:
    torch.save({"model": {**_state(), key: torch.zeros(1)}}, tmp_path / "deep.pth")
    _refused(tmp_path / "deep.pth", says)


def test_widths_of_nothing(tmp_path: Path) -> None:
    state = {name: tensor[..., :0] for name, tensor in _state().items()}
    torch.save({"model": state}, tmp_path / "none.pth")
    _refused(tmp_path / "none.pth", r"no usable|pos_embed|not a Vim")


@pytest.mark.parametrize(
    "start", [struct.pack("<Q", 2**63), struct.pack("<Q", 50_000_000), b"\x01", b""]
)
def test_a_safetensors_header_that_lies(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(start + bytes(2_000))
    _refused(path, "safetensors")


def test_a_safetensors_header_of_many_tensors(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({f"t{n}": entry for n in range(file_limits.MAX_TENSORS + 1)}).encode()
    path = tmp_path / "many.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    _refused(path, "more than 20000 tensors")


def test_a_file_larger_than_any_model(tmp_path: Path) -> None:
    path = tmp_path / "large.pth"
    with path.open("wb") as file:
        file.truncate(file_limits.MAX_BYTES + 1)  # sparse: takes no room
    _refused(path, "more than any model")


def test_honest_checkpoints_still_load() -> None:
    assert load_model("mine", MICRO, device="cpu").info.dim > 0
