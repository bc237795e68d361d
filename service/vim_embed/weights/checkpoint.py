"""Reads Vim weights safely and builds the model that they describe.

Released files are pickles with an `argparse.Namespace` inside; only tensors, plain containers
and that one class are admitted, so a hostile file cannot run code.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vim_embed.errors import WeightsError
from vim_embed.models.vim import Vim, VimConfig
from vim_embed.weights.file_limits import MAX_DEPTH, MAX_SIDE, check_tensors

_STATE_KEYS = ("model", "model_ema", "state_dict")
_CLASSIFIER = re.compile(r"^head\.")


@dataclass(frozen=True)
class Checkpoint:
    """A state dict with plain key names, and the training image size if the file tells it."""

    state: dict[str, Tensor]
    image_size: int | None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a `.pth`, `.pt`, `.bin` or `.safetensors` file. Raises WeightsError."""
    checkpoint = _read(path)
    check_tensors(checkpoint.state, path)
    return checkpoint


def _read(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        return Checkpoint(_plain_keys(_read_safetensors(path)), None)
    raw = _read_pickle(path)
    if not isinstance(raw, Mapping):
        raise WeightsError(f"{path} holds a {type(raw).__name__}, not a checkpoint dictionary")
    state = next((raw[key] for key in _STATE_KEYS if isinstance(raw.get(key), Mapping)), raw)
    return Checkpoint(_plain_keys(state), _image_size(raw.get("args")))


def build_vim(checkpoint: Checkpoint, path: Path) -> Vim:
    """The model whose shapes the tensors have, with its weights loaded, in float32.

    Raises WeightsError that lists every missing, misshaped and unknown key.
    """
    config = read_config(checkpoint, path)
    with torch.device("meta"):
        model = Vim(config)
    state = {k: v for k, v in checkpoint.state.items() if not _CLASSIFIER.match(k)}
    _check_keys(model.state_dict(), state, path)
    model.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    return model.requires_grad_(False).eval()


def read_config(checkpoint: Checkpoint, path: Path) -> VimConfig:
    """Read the architecture off the tensor shapes.

    The stride follows from the grid side s and the image size: (size - patch) / (s - 1). Where the
    file does not tell the size, an odd side means overlapping patches of half the patch size (image
    sizes are multiples of 32, so s = size / patch is even, s = 2 size / patch - 1 is odd).
    """
    try:
        state = checkpoint.state
        patch = state["patch_embed.proj.weight"].shape[-1]
        positions, dim = state["pos_embed"].shape[1:]
        inner, d_state = state["layers.0.mixer.A_log"].shape
        dt_rank = state["layers.0.mixer.dt_proj.weight"].shape[1]
        d_conv = state["layers.0.mixer.conv1d.weight"].shape[-1]
        depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("layers."))
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(
            f"{path} is not a Vim checkpoint (bimamba v2): {error} is missing or misshaped. "
            f"It holds {len(state)} tensors: {', '.join(sorted(state)[:8])}, …"
        ) from error
    side = math.isqrt(positions - 1)
    if side * side != positions - 1:
        raise WeightsError(f"{path}: pos_embed has {positions} rows, not a square grid plus one")
    if min(patch, dim, inner, d_state, dt_rank, d_conv) < 1 or depth > MAX_DEPTH:
        raise WeightsError(f"{path} has no usable architecture: {depth} layers of width {dim}")
    stride, size = _stride_and_size(side, patch, checkpoint.image_size)
    if stride < 1 or size > MAX_SIDE:
        raise WeightsError(f"{path} is for images of {size} pixels, which cannot be served")
    return VimConfig(
        dim=dim,
        depth=depth,
        image_size=size,
        patch_size=patch,
        stride=stride,
        d_state=d_state,
        d_conv=d_conv,
        dt_rank=dt_rank,
        expand=inner // dim,
    )


def _stride_and_size(side: int, patch: int, image_size: int | None) -> tuple[int, int]:
    if image_size is not None and side > 1 and (image_size - patch) % (side - 1) == 0:
        return (image_size - patch) // (side - 1), image_size
    stride = patch // 2 if side % 2 else patch
    return stride, (side - 1) * stride + patch


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: Mapping[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    return tensors


def _read_pickle(path: Path) -> object:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors and is not unpickled, since that could run code. "
            f"Save its state dict as safetensors. ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # reading noise as a pickle can end in any of them
        raise WeightsError(
            f"{path} is not a readable checkpoint, perhaps cut short while downloading: {error}"
        ) from error


def _plain_keys(state: Mapping[str, object]) -> dict[str, Tensor]:
    return {
        key.removeprefix("module."): value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _image_size(args: object) -> int | None:
    size = getattr(args, "input_size", None)
    return size if isinstance(size, int) and size > 0 else None


def _check_keys(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    shapes = {key: tuple(value.shape) for key, value in expected.items()}
    missing = [key for key in shapes if key not in found]
    unknown = [key for key in found if key not in shapes]
    misshaped = [
        f"{key} is {tuple(found[key].shape)}, not {shape}"
        for key, shape in shapes.items()
        if key in found and tuple(found[key].shape) != shape
    ]
    problems = [
        f"{title}: {', '.join(keys)}"
        for title, keys in (("missing", missing), ("misshaped", misshaped), ("unknown", unknown))
        if keys
    ]
    if problems:
        raise WeightsError(f"{path} does not fit Vim (bimamba v2). " + "; ".join(problems))
