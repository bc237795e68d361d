"""The check at load: is this model, on this machine, what the reference operations compute?

Five images that a telescope or a fault may send, every pooling, all tokens and the worst token of
each image. In half precision the tolerance is not a number for all models, since the error grows
with depth and with outlier channels: the same weights go through the reference operations in the
same dtype, and what rounding alone makes there, with some room, is allowed. So kernels that err
twice as much as rounding are refused, and large channels in trained weights are not.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from vim_embed.inference.embedder import Embedder
from vim_embed.types.model_info import (
    EMBEDDING,
    CheckedOutput,
    EmbedOptions,
    LoadCheck,
    ModelInfo,
)

# What a golden sample may differ by from one run to the next, by compute dtype, as relative L2; and
# float32 from its reference.
SELF_CHECK_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 5e-2}
# Sound kernels have up to 5e-6, split products on a GPU up to 7e-6 (docs/gpu.md).
PLAIN_VIM_TOLERANCE = 5e-5
# How much more than rounding may be. The fused kernels add a convolution's taps in half precision
# and take patches relative to black: of a bright picture they err up to 2.2 times as much as
# rounding does. Twice that is still refused.
ROUNDING_RATIO = 1.5
FUSED_RATIO = 3.0
# Images that are read off as they are, then one of floats that provokes outlier channels.
NOISE, DARK_SKY, STAR, PICTURE, OUTLIERS = (
    "noise", "a dark sky with a source", "a saturated star", "a picture", "outlier channels",
)  # fmt: skip
_OUTLIER_CHANNELS = 6
_OUTLIER_SCALE = 30.0  # times the RMS of the patch vectors
_LARGEST_PIXEL = 30.0  # normalised; ImageNet's white is 2.6

Outputs = dict[str, Tensor]


def self_check(model: Embedder) -> LoadCheck:
    """Compare every output of the model with its reference, image by image."""
    pictures = check_images(model.info).to(model.device)
    provoking = outlier_image(model, pictures)
    normalised = torch.cat([model.normalised(pictures), provoking])
    names = [NOISE, DARK_SKY, STAR, PICTURE, *([OUTLIERS] if len(provoking) else [])]
    found = _joined([_outputs(model, batch) for batch in (pictures, provoking) if len(batch)])
    expected = _outputs(_in_reference(model, torch.float32), normalised)
    errors = {what: _errors(what, found, expected) for what in expected}
    if model.dtype == torch.float32:
        allowed = {what: _float32_tolerance(model) for what in errors}
    else:
        rounded = _outputs(_in_reference(model, model.dtype), normalised)
        by_rounding = {what: _errors(what, rounded, expected) for what in expected}
        if not math.isfinite(by_rounding["tokens"][-1]):  # the dtype's fault, not the kernels'
            names, errors = names[:-1], {w: e[:-1] for w, e in errors.items()}
            by_rounding = {w: e[:-1] for w, e in by_rounding.items()}
        ratio = FUSED_RATIO if model.info.backend == "fused" else ROUNDING_RATIO
        allowed = {what: ratio * max(rounding) for what, rounding in by_rounding.items()}
    outputs = [_checked(what, each, names, allowed[what]) for what, each in errors.items()]
    return LoadCheck(outputs=tuple(outputs), images=tuple(names))


def check_images(info: ModelInfo, seed: int = 0) -> Tensor:
    """(4, C, S, S) uint8: noise, a dark sky with a source, a saturated star, a picture."""
    size, channels = info.preprocessing.image_size, info.channels
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    sky = rng.normal(4.0, 1.5, (channels, size, size))
    source = 120 * np.exp(-((x - 0.4) ** 2 + (y - 0.55) ** 2) / (2 * 0.05**2))
    apart = np.hypot(x - 0.5, y - 0.5)
    spikes = np.minimum(abs(x - 0.5), abs(y - 0.5)) < 0.01
    star = np.where((apart < 0.12) | (spikes & (apart < 0.4)), 255, 60 * np.exp(-apart / 0.1))
    waves = [np.sin(2 * np.pi * (a * x + b * y + c / 3)) for a, b, c in ((1, 2, 0), (3, -1, 1))]
    picture = 128 + 55 * waves[0] + 40 * waves[1] + 30 * (x > 0.6)
    tints = np.linspace(0.7, 1.0, channels)[:, None, None]
    drawn = [sky + source * tints, sky + star, picture * tints]
    pixels = torch.from_numpy(np.stack(drawn).clip(0, 255).astype(np.uint8))
    return torch.cat([noise_image(info, seed), pixels])


def noise_image(info: ModelInfo, seed: int = 0) -> Tensor:
    """(1, C, S, S) uint8 seeded noise, on the host: the golden sample."""
    size = info.preprocessing.image_size
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, info.channels, size, size)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8, device="cpu")


def outlier_image(model: Embedder, pictures: Tensor) -> Tensor:
    """(1, C, S, S) float32 normalised, whose every patch has six channels 30 times as large as is
    typical for `pictures`; (0, C, S, S) for a model without patches by convolution.

    Patches are linear in their pixels, so a ridge regression finds the pixels.
    """
    size, channels = model.info.preprocessing.image_size, model.info.channels
    conv = next((m for m in model.module.modules() if isinstance(m, nn.Conv2d)), None)
    if conv is None or conv.groups != 1:
        return torch.empty(0, channels, size, size, device=model.device)
    weight = conv.weight.detach().float()
    matrix = weight.flatten(1)  # (D, C k k)
    with torch.inference_mode():
        patches = nn.functional.conv2d(model.normalised(pictures), weight, stride=conv.stride)
    wanted = torch.zeros(len(matrix), device=model.device)
    step = max(1, len(matrix) // _OUTLIER_CHANNELS)
    wanted[::step][:_OUTLIER_CHANNELS] = _OUTLIER_SCALE * patches.square().mean().sqrt()
    gram = matrix @ matrix.T
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), device=model.device)
    pixels: Tensor = matrix.T @ torch.linalg.solve(gram + ridge, wanted)
    pixels = pixels * min(1.0, _LARGEST_PIXEL / float(pixels.abs().max()))
    height, width = weight.shape[2:]
    tile: Tensor = pixels.reshape(1, channels, height, width)
    tiled = tile.repeat(1, 1, -(-size // height), -(-size // width))
    return tiled[..., :size, :size].contiguous()


def _outputs(model: Embedder, pixels: Tensor) -> Outputs:
    """All tokens, and every pooling as it is served."""
    tokens = model.compute(pixels, EmbedOptions(pooling="tokens"))[EMBEDDING]
    outputs = {"tokens": tokens}
    for pooling in model.info.poolings:
        if pooling == "cls" and model.info.backend == "fused":  # has kernels of its own
            outputs[pooling] = model.compute(pixels, EmbedOptions(pooling=pooling))[EMBEDDING]
        elif pooling != "tokens":
            outputs[pooling] = model.pooled(tokens, pooling, *pixels.shape[-2:])
    return outputs | {"worst token": tokens}


def _joined(parts: list[Outputs]) -> Outputs:
    return {what: torch.cat([part[what] for part in parts]) for what in parts[0]}


def _errors(what: str, found: Outputs, expected: Outputs) -> list[float]:
    """Relative L2 of each image."""
    right = expected[what]
    apart = found[what] - right
    if what == "worst token":
        errors = (apart.norm(dim=-1) / right.norm(dim=-1)).amax(dim=-1)
    else:
        errors = apart.flatten(1).norm(dim=1) / right.flatten(1).norm(dim=1)
    return [float(error) for error in errors]


def _checked(what: str, errors: list[float], names: list[str], allowed: float) -> CheckedOutput:
    """The worst image of an output; one that is not finite is the worst."""
    place = max(range(len(errors)), key=lambda i: math.inf if math.isnan(errors[i]) else errors[i])
    return CheckedOutput(what=what, error=errors[place], tolerance=allowed, image=names[place])


def _float32_tolerance(model: Embedder) -> float:
    plain = model.info.kind == "vim" and model.info.backend != "fused"
    return PLAIN_VIM_TOLERANCE if plain else SELF_CHECK_TOLERANCE[torch.float32]


def _in_reference(model: Embedder, dtype: torch.dtype) -> Embedder:
    twin = model.module.in_reference(dtype)  # type: ignore[operator]
    return Embedder(model.info, cast(nn.Module, twin), model.device)
