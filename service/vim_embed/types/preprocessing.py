"""What a model expects of its pixels: the spec that every model publishes.

Knows nothing of tensors; `inference/normalisation.py` applies it on the device, and
`http/formats/images.py` to files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

PerChannel = tuple[float, ...]  # one number for each channel

IMAGENET_MEAN: PerChannel = (0.485, 0.456, 0.406)
IMAGENET_STD: PerChannel = (0.229, 0.224, 0.225)
HALF: PerChannel = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Scaling:
    """What makes a pixel a normalised one: `pixel * scale[c] + offset[c]` in channel c."""

    scale: PerChannel
    offset: PerChannel

    @classmethod
    def of_bytes(cls, mean: PerChannel, std: PerChannel) -> Scaling:
        """Of pixels from 0 to 255: brought to [0, 1], less the mean, over the std."""
        scale = tuple(1 / (255 * deviation) for deviation in std)
        return cls(scale, tuple(-m / deviation for m, deviation in zip(mean, std, strict=True)))


NORMALISED = Scaling((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))


@dataclass(frozen=True)
class Rounding:
    """What a half-precision forward makes of normalised float32 pixels before all else: the sum
    with `offset[c]` in channel c, rounded to the nearest of `dtype`, "float16" or "bfloat16".
    """

    dtype: str
    offset: PerChannel


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize to `image_size` pixels squared, scale to [0, 1], subtract mean, divide by std.

    resize_to: first resize to this many pixels squared, then cut `image_size` out of the centre;
    0: without a cut. keep_aspect: resize the shorter side to that, and the longer in proportion.
    """

    image_size: int
    interpolation: str
    mean: PerChannel
    std: PerChannel
    channels: str = "RGB"
    resize_to: int = 0
    keep_aspect: bool = False

    @cached_property
    def digest(self) -> str:
        """sha256 over the spec as sorted JSON: equal digests mean equal preprocessing."""
        spec = asdict(self)
        if not self.resize_to:  # specs without a cut keep the digest that they always had
            del spec["resize_to"], spec["keep_aspect"]
        text = json.dumps(spec, sort_keys=True)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def as_entry(self) -> dict[str, Any]:
        """As `GET /models` tells it: the fields as JSON has them, and the digest."""
        spec = asdict(self)
        return spec | {"mean": list(self.mean), "std": list(self.std), "digest": self.digest}

    def normalised_with(self, mean: PerChannel | None, std: PerChannel | None) -> Preprocessing:
        """The same spec with another mean or std, where given."""
        return replace(self, mean=mean or self.mean, std=std or self.std)


def of_bands(image_size: int, interpolation: str, channels: int) -> Preprocessing:
    """Of a model of other channels than RGB, whose mean and deviations nobody published."""
    return Preprocessing(
        image_size=image_size,
        interpolation=interpolation,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        channels=f"{channels} bands",
    )


VIM_PREPROCESSING = Preprocessing(
    image_size=224, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD
)
VIT_PREPROCESSING = Preprocessing(image_size=224, interpolation="bilinear", mean=HALF, std=HALF)
