"""Reads a weights file safely, finds the model in it, and builds the module that it describes.

Released files are pickles with an `argparse.Namespace` or numpy arrays inside; only tensors, plain
containers and the few classes of `_ADMITTED` are read, so a hostile file cannot run code.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vim_embed.errors import WeightsError
from vim_embed.models.vim import Vim, VimConfig
from vim_embed.weights.families import Family, UncomputedForm, Word, decide, told_family, told_size
from vim_embed.weights.file_limits import MAX_DEPTH, MAX_SIDE
from vim_embed.weights.names import Copy
from vim_embed.weights.state_dicts import FoundModel, find_model

# Plain data that trainers keep beside the tensors. None of them runs code when it is unpickled.
_ADMITTED: list[Any] = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    *(kind for name, kind in vars(np.dtypes).items() if name.endswith("DType")),
    *(
        (made.__reduce__()[0], f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for made, name in ((np.empty(0), "_reconstruct"), (np.float64(0), "scalar"))
    ),
    *(
        (pathlib.PurePosixPath, f"{module}.{kind}")
        for module in ("pathlib", "pathlib._local")
        for kind in ("PosixPath", "PurePosixPath")
    ),
]
# Keys beside the encoder that an embedding does without, by their first part.
_ASIDE = re.compile(
    r"^(\w*_)?(head|heads|head_\w+|classifier|cls_head|fc\d*|linear|logits?|proj|projector|"
    r"projection|predictor|prototypes?|criterion|loss\w*|metrics?|decoder\w*|mask_token)(\.|$)"
)
_SETTINGS = ("args", "hyper_parameters", "config")
_MODEL_NAMES = ("model", "arch", "model_name")
_SIZE_NAMES = ("input_size", "img_size", "image_size")


@dataclass(frozen=True)
class Checkpoint:
    """A state dict with plain key names, and what the file says of it.

    told: names of the model in the trainer's settings, by where they stand (`args.model`).
    image_size: the side of the images of training in pixels, if it is told.
    """

    state: dict[str, Tensor]
    place: str
    told: Mapping[str, str]
    image_size: int | None


@dataclass(frozen=True)
class BuiltVim:
    """A module with its weights in float32. reason: why it is of that family. read: from where."""

    module: Vim
    family: Family
    reason: str
    read: str


def read_checkpoint(path: Path, copy: Copy | None = None) -> Checkpoint:
    """Read a `.pth`, `.pt`, `.ckpt`, `.bin` or `.safetensors` file. Raises WeightsError.

    copy: of the averaged (EMA) and the plain weights, where a file has both.
    """
    if path.suffix == ".safetensors":
        content, told = _read_safetensors(path)
        return _checkpoint(find_model(content, path, copy), told, None)
    raw = _read_pickle(path)
    if not isinstance(raw, Mapping):
        raise WeightsError(f"{path} holds a {type(raw).__name__}, not a checkpoint dictionary")
    settings = [(key, _as_mapping(raw.get(key))) for key in _SETTINGS]
    names = {f"{key}.{name}": s.get(name) for key, s in settings for name in _MODEL_NAMES}
    sizes = {
        f"{key}.{name}": _told_side(s.get(name)) for key, s in settings for name in _SIZE_NAMES
    }
    told = {where: name for where, name in names.items() if isinstance(name, str) and name}
    size = _one_size({where: size for where, size in sizes.items() if size}, path)
    return _checkpoint(find_model(raw, path, copy), told, size)


def build_vim(checkpoint: Checkpoint, path: Path, words: list[Word] | None = None) -> BuiltVim:
    """The module that the tensors and those who know say, with its weights, in float32.

    words: of others than the file. Raises WeightsError that lists every missing, misshaped and
    unknown key, or what is in doubt.
    """
    shapes = _read_shapes(checkpoint.state, path)
    told = _told_words(checkpoint, path)
    family, reason = decide(
        checkpoint.state,
        [*(words or []), *told],
        None if told else next(iter(checkpoint.told.values()), None),
        path,
    )
    config = _config(shapes, checkpoint, family, path)
    with torch.device("meta"):
        model = family.module(config)
    state = family.prepare(checkpoint.state, path)
    expected = model.state_dict()
    aside = sorted(key for key in state if key not in expected and _ASIDE.match(key))
    state = {key: value for key, value in state.items() if key not in aside}
    _check_keys(expected, state, family, path)
    model.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    unused = ", ".join(dict.fromkeys(key.split(".")[0] for key in aside))
    read = f"{checkpoint.place}; not used: {unused}" if unused else checkpoint.place
    return BuiltVim(model.requires_grad_(False).eval(), family, reason, read)


@dataclass(frozen=True)
class _Shapes:
    """What every family's tensors tell. positions: rows of pos_embed, whatever they are of."""

    dim: int
    channels: int
    patch: int
    positions: int
    inner: int
    d_state: int
    dt_rank: int
    d_conv: int
    depth: int


def _read_shapes(state: Mapping[str, Tensor], path: Path) -> _Shapes:
    try:
        dim, channels, *_, patch = state["patch_embed.proj.weight"].shape
        positions, width = state["pos_embed"].shape[1:]
        inner, d_state = state["layers.0.mixer.A_log"].shape
        dt_rank = state["layers.0.mixer.dt_proj.weight"].shape[1]
        d_conv = state["layers.0.mixer.conv1d.weight"].shape[-1]
        depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("layers."))
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(
            f"{path} is not a Vim checkpoint (bimamba v2): {error} is missing or misshaped. "
            f"It holds {len(state)} tensors: {', '.join(sorted(state)[:8])}, …"
        ) from error
    sizes = (patch, dim, channels, inner, d_state, dt_rank, d_conv)
    if min(sizes) < 1 or width != dim or depth > MAX_DEPTH:
        raise WeightsError(f"{path} has no usable architecture: {depth} layers of width {dim}")
    return _Shapes(dim, channels, patch, positions, inner, d_state, dt_rank, d_conv, depth)


def _config(shapes: _Shapes, checkpoint: Checkpoint, family: Family, path: Path) -> VimConfig:
    """The architecture.

    The stride follows from the grid side s and the image size: (size - patch) / (s - 1). Where the
    file does not tell the size, an odd side means overlapping patches of half the patch size, in
    families that have them (image sizes are multiples of 32, so s = size / patch is even,
    s = 2 size / patch - 1 is odd).
    """
    own = {**family.switches, **family.read(checkpoint.state)}
    positions = shapes.positions - (own.get("cls", "middle") != "none")
    side = math.isqrt(max(positions, 0))
    if side * side != positions:
        raise WeightsError(f"{path}: pos_embed has rows for {positions} patches, no square grid")
    told = checkpoint.image_size
    fitting = _stride_and_size(side, shapes.patch, told, overlaps=family.overlaps)
    if fitting is None:
        raise WeightsError(
            f"{path}: its args say images of {told} pixels, whose patches of {shapes.patch} make "
            f"no grid of {side} × {side}, which pos_embed has. If you are sure of the tensors, "
            f"save its state dict alone as safetensors and name the family with "
            f"NAME={family.name}:PATH"
        )
    stride, size = fitting
    if side < 1 or stride < 1 or size > MAX_SIDE:
        raise WeightsError(f"{path} is for images of {size} pixels, which cannot be served")
    return VimConfig(
        dim=shapes.dim,
        depth=shapes.depth,
        image_size=size,
        patch_size=shapes.patch,
        stride=stride,
        d_state=shapes.d_state,
        d_conv=shapes.d_conv,
        dt_rank=shapes.dt_rank,
        expand=shapes.inner // shapes.dim,
        channels=shapes.channels,
        **own,
    )


def _stride_and_size(
    side: int, patch: int, image_size: int | None, *, overlaps: bool
) -> tuple[int, int] | None:
    """None where no stride makes so many patches of images of that size."""
    if image_size is None:
        stride = patch // 2 if overlaps and side % 2 else patch
        return stride, (side - 1) * stride + patch
    room = image_size - patch
    strides = [patch, patch // 2, room // max(side - 1, 1)]
    fitting = (s for s in strides if 0 < s <= patch and room // s == side - 1 and room >= 0)
    stride = next(fitting, 0)
    return (stride, image_size) if stride else None


def _told_side(size: object) -> int | None:
    """Of a number of pixels, or (channels, height, width) of a square."""
    if isinstance(size, list | tuple) and len(size) > 1 and size[-1] == size[-2]:
        size = size[-1]
    return size if isinstance(size, int) and size > 0 else None


def _one_size(sizes: Mapping[str, int], path: Path) -> int | None:
    """The size that all who tell one agree on, or WeightsError."""
    for where, size in sizes.items():
        first, of_first = next(iter(sizes.items()))
        if size != of_first:
            raise WeightsError(
                f"{path}: its {first} says images of {of_first} pixels, but its {where} says "
                f"{size}. Save its state dict alone as safetensors and name the family with "
                f"NAME=FAMILY:PATH"
            )
    return next(iter(sizes.values()), None)


def _checkpoint(found: FoundModel, told: Mapping[str, str], image_size: int | None) -> Checkpoint:
    return Checkpoint(found.state, found.place, told, image_size)


def _told_words(checkpoint: Checkpoint, path: Path) -> list[Word]:
    """What the file's own settings say. Raises WeightsError for a form of no module here."""
    words = []
    for where, name in checkpoint.told.items():
        try:
            family = told_family(name)
        except UncomputedForm as error:
            raise WeightsError(
                f"{path}: its {where} {name!r} says {error}, which is not computed here"
            ) from error
        if family:
            words.append(Word(f"its {where} {name!r}", family, told_size(name)))
    return words


def _read_safetensors(path: Path) -> tuple[Mapping[object, object], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[object, object] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    return tensors, {f"metadata.{key}": metadata[key] for key in _MODEL_NAMES if metadata.get(key)}


def _read_pickle(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(_ADMITTED):
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


def _as_mapping(settings: object) -> Mapping[str, object]:
    if isinstance(settings, argparse.Namespace):
        return vars(settings)
    return settings if isinstance(settings, Mapping) else {}


def _check_keys(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], family: Family, path: Path
) -> None:
    shapes = {key: tuple(value.shape) for key, value in expected.items()}
    missing = [key for key in shapes if key not in found]
    unknown = [key for key in found if key not in shapes]
    misshaped = [
        f"{key} is {tuple(found[key].shape)}, not {shape}"
        for key, shape in shapes.items()
        if key in found and tuple(found[key].shape) != shape
    ]
    whole = [
        f"{key} is {found[key].dtype}"
        for key in shapes
        if key in found and not found[key].is_floating_point()
    ]
    problems = [
        f"{title}: {', '.join(keys)}"
        for title, keys in (
            ("missing", missing),
            ("misshaped", misshaped),
            ("unknown", unknown),
            ("no floating-point numbers", whole),
        )
        if keys
    ]
    if problems:
        raise WeightsError(
            f"{path} does not fit {family.name} (bimamba v2). " + "; ".join(problems)
        )
