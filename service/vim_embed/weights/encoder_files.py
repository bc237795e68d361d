"""Loads an encoder from a repository's files: config.json, weights, the processor's settings.

transformers' own loader reads them, as the class that the table of encoders names: code that a
repository brings along is never run.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from vim_embed.errors import WeightsError
from vim_embed.models.attention import ATTENTION
from vim_embed.models.encoder import ENCODERS, Encoder, EncoderFamily
from vim_embed.types.preprocessing import HALF, PerChannel, Preprocessing

_MAX_CONFIG_BYTES = 4 * 1024**2
# Pillow's resampling codes as processors store them
_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# Without which a model embeds just the same.
_NEEDLESS = ("mask_token", "pooler.dense")
_DEFAULT_SIZE = 224
# Kinds of processors for which a size that is one number is the shorter side's.
_IN_PROPORTION = ("CLIP", "ChineseCLIP", "ConvNext", "Bit")
_CONVNEXT_CROP = 224 / 256  # where its processor's file tells no crop_pct
# What a processor may do to pixels and the service does not.
_FOREIGN_STEPS = ("rescale_offset", "do_flip_channel_order", "do_pad", "do_convert_grayscale")


def load_encoder(folder: Path) -> Encoder:
    """The encoder of a local folder. Raises WeightsError."""
    family = _family(folder)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    attention = {"attn_implementation": ATTENTION} if family.attention else {}
    try:
        model, report = family.model_class.from_pretrained(
            folder,
            local_files_only=True,
            output_loading_info=True,
            weights_only=True,
            dtype=torch.float32,
            **attention,
            **family.options,
        )
        encoder = Encoder(model.requires_grad_(False).eval(), family)
        encoder.layout(_DEFAULT_SIZE, _DEFAULT_SIZE)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{folder} is not a loadable {family.title}: {error}") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{folder} is not a loadable {family.title}: its weights hold more than tensors and "
            f"are not unpickled"
        ) from error
    _check_report(report, family, folder)
    return encoder


def read_preprocessing(folder: Path, encoder: Encoder) -> Preprocessing:
    """The spec in the folder's processor file; without one 0.5/0.5 and bilinear.

    Raises WeightsError for what the service cannot do: the numbers would be others.
    """
    stored = _processor(folder)
    try:
        return _preprocessing(stored, encoder)
    except ValueError as error:
        raise WeightsError(f"{folder}: its processor {error}") from error


def _preprocessing(stored: Mapping[str, Any], encoder: Encoder) -> Preprocessing:
    """Raises ValueError that says what the processor does and the service does not."""
    for step in _FOREIGN_STEPS:
        if stored.get(step):
            raise ValueError(f"has {step}, which is not done here")
    if not encoder.family.any_size and encoder.image_size is not None:
        native = encoder.image_size
    else:
        native = 0
    resize, aspect = _resize(stored, native or encoder.image_size or _DEFAULT_SIZE)
    crop = _side(stored.get("crop_size")) if stored.get("do_center_crop") else None
    resample = stored.get("resample", 2)
    if resample not in _INTERPOLATIONS:
        raise ValueError(f"resizes by {resample!r}, which is no code of Pillow")
    if aspect and crop is None:
        resize, aspect, crop = _convnext(stored, resize)
    size = crop or resize
    if native and size != native:
        raise ValueError(f"makes images of {size} pixels, its model takes {native}")
    if resize < size:
        raise ValueError(f"crops {size} pixels of {resize}")
    if not stored.get("do_rescale", True) or not 0.0039 < _rescale(stored) < 0.00393:
        raise ValueError(f"scales pixels by {_rescale(stored)}, not 1/255")
    normalised = stored.get("do_normalize", True)
    plain = (0.0,) * encoder.channels, (1.0,) * encoder.channels
    usual = (HALF, HALF) if encoder.channels == 3 else plain
    return Preprocessing(
        image_size=size,
        interpolation=_INTERPOLATIONS[resample],
        mean=_per_channel(stored.get("image_mean"), usual[0]) if normalised else plain[0],
        std=_per_channel(stored.get("image_std"), usual[1]) if normalised else plain[1],
        channels="RGB" if encoder.channels == 3 else f"{encoder.channels} bands",
        resize_to=resize if aspect or resize != size else 0,
        keep_aspect=aspect,
    )


def _family(folder: Path) -> EncoderFamily:
    kind = _json(folder / "config.json").get("model_type")
    if kind not in ENCODERS:
        raise WeightsError(
            f"{folder} is of model_type {kind!r}, which is not served here: use one of "
            f"{', '.join(ENCODERS)}"
        )
    return ENCODERS[kind]


def _check_report(report: Mapping[str, Any], family: EncoderFamily, folder: Path) -> None:
    problems = []
    for key in ("missing_keys", "mismatched_keys"):
        names = sorted(str(n) for n in report[key] if not any(part in str(n) for part in _NEEDLESS))
        if names:
            problems.append(f"{key.removesuffix('_keys')}: {', '.join(names)}")
    if problems:
        raise WeightsError(f"{folder} does not fit {family.model}. " + "; ".join(problems))


def _processor(folder: Path) -> Mapping[str, Any]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            stored = _json(folder / name)
            inner = stored.get("image_processor")
            return inner if isinstance(inner, Mapping) else stored
    return {}


def _json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise WeightsError(f"{path} is larger than any configuration")
        stored = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(stored, Mapping):
        raise WeightsError(f"{path} holds no settings")
    return stored


def _resize(stored: Mapping[str, Any], default: int) -> tuple[int, bool]:
    """The side after resizing, and whether it is the shorter one of an image in proportion."""
    size = stored.get("size", default)
    if not stored.get("do_resize", True):
        return default, False
    if isinstance(size, Mapping) and "shortest_edge" in size and "longest_edge" not in size:
        return _side(size["shortest_edge"]), True
    number = isinstance(size, int | float)
    return _side(size), number and (_of_kind(stored, _IN_PROPORTION) or "crop_pct" in stored)


def _convnext(stored: Mapping[str, Any], size: int) -> tuple[int, bool, int | None]:
    """ConvNeXt's own rule: below 384 pixels the shorter side is size / crop_pct, then a crop."""
    own = _CONVNEXT_CROP if _of_kind(stored, ("ConvNext",)) else None
    crop_pct = stored.get("crop_pct") or own
    if crop_pct and size < 384:
        return int(size / crop_pct), True, size
    return size, False, None


def _of_kind(stored: Mapping[str, Any], kinds: tuple[str, ...]) -> bool:
    name = stored.get("image_processor_type") or stored.get("feature_extractor_type")
    return isinstance(name, str) and name.startswith(kinds)


def _side(size: object) -> int:
    """The side of a square in pixels. Raises ValueError for any other shape."""
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        sides = [size["height"], size["width"]]
    else:
        sides = size if isinstance(size, list) else [size]
    side = sides[0] if sides else None
    if any(other != side for other in sides) or not isinstance(side, int | float) or side < 1:
        raise ValueError(f"makes images of the size {size!r}, which are no squares")
    return int(side)


def _rescale(stored: Mapping[str, Any]) -> float:
    return float(stored.get("rescale_factor", 1 / 255))


def _per_channel(values: object, default: PerChannel) -> PerChannel:
    if values is None:
        return default
    numbers: list[Any] = values if isinstance(values, list) else [values] * len(default)
    if len(numbers) != len(default) or not all(isinstance(n, int | float) for n in numbers):
        raise ValueError(f"has {values!r} for {len(default)} channels")
    return tuple(float(number) for number in numbers)
