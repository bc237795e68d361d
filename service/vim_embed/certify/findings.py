"""What the measurements mean: faults, which make a dtype unfit for a model, and cautions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vim_embed.certify.measure import Measured
from vim_embed.types.devices import resolve_dtype

# Of a channel's RMS over that of the stage's median channel. Products of gates and inputs differ
# more by nature: up to 36 times in sound random weights.
OUTLIER_RATIO = 10.0
PRODUCT_RATIO = 100.0
_PRODUCTS = re.compile(r"\.(scan|conv1d|conv1d_b)$")
HIGH_NORM_RATIO = 3.0  # of a token's norm over the median of all tokens
KERNEL_RATIO = 1.5  # of an error over what rounding alone makes
FLOAT32_ERROR = 1e-4  # relative L2 of float32 on any kernels
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Range:
    """The largest activation of one kind of stage (`layers.*.mixer.in_proj`) over all blocks.

    share: of the dtype's largest finite number.
    """

    stage: str
    peak: float
    where: str
    image: str
    share: float


@dataclass(frozen=True, kw_only=True)
class Outliers:
    """Channels of one stage that stand out: see OUTLIER_RATIO. ratio: of the largest."""

    stage: str
    channels: tuple[int, ...]
    ratio: float


@dataclass(frozen=True, kw_only=True)
class HighNorms:
    """Tokens whose norm is HIGH_NORM_RATIO times the median, or more.

    count, images: such tokens, and images that have one. largest: norm over the median. places:
    in words, the most frequent first, with how often. grid: how often at each patch, row by row.
    """

    count: int
    images: int
    largest: float
    places: tuple[tuple[str, int], ...]
    grid: tuple[tuple[int, ...], ...]


def ranges(measured: Measured) -> list[Range]:
    """Every kind of stage, the one nearest to the dtype's range first."""
    most = torch.finfo(resolve_dtype(measured.fast.info.dtype)).max
    found: dict[str, Range] = {}
    for name, stage in measured.observer.stages.items():
        kind = re.sub(r"\.\d+\.", ".*.", name)
        if kind not in found or stage.peak > found[kind].peak:
            image = measured.images.ids[stage.row]
            share = stage.peak / most
            found[kind] = Range(stage=kind, peak=stage.peak, where=name, image=image, share=share)
    return sorted(found.values(), key=lambda one: -one.peak)


def outlier_channels(measured: Measured) -> list[Outliers]:
    """By stage, the largest ratio first."""
    found = []
    for name, stage in measured.observer.stages.items():
        rms = stage.channel_rms
        typical = float(rms.median())
        allowed = PRODUCT_RATIO if _PRODUCTS.search(name) else OUTLIER_RATIO
        high = torch.nonzero(rms >= allowed * typical).flatten().tolist()
        if high and typical > 0:
            ratio = float(rms.max()) / typical
            found.append(Outliers(stage=name, channels=tuple(high), ratio=ratio))
    return sorted(found, key=lambda one: -one.ratio)


def high_norms(measured: Measured) -> HighNorms:
    """Of all images, against the median of all their tokens."""
    layout = measured.fast.info.tokens
    assert layout is not None
    norms = measured.norms
    median = float(np.median(norms))
    high = norms >= HIGH_NORM_RATIO * median
    times = high.sum(axis=0)
    rows, columns = layout.grid
    grid = times[list(layout.patches)].reshape(rows, columns)
    names = {token: f"patch {i // columns},{i % columns}" for i, token in enumerate(layout.patches)}
    names |= {token: f"register {i}" for i, token in enumerate(layout.registers)}
    if layout.cls is not None:
        names[layout.cls] = "class token"
    counted = Counter({names.get(i, f"token {i}"): int(n) for i, n in enumerate(times) if n})
    return HighNorms(
        count=int(high.sum()),
        images=int(high.any(axis=1).sum()),
        largest=float(norms.max()) / median,
        places=tuple(counted.most_common(10)),
        grid=tuple(tuple(int(n) for n in row) for row in grid),
    )


def faults(measured: Measured) -> list[str]:
    """In words, each with what to do."""
    info = measured.fast.info
    found = []
    if measured.overflowing:
        names = _listed([measured.images.ids[row] for row in measured.overflowing])
        found.append(
            f"{len(measured.overflowing)} of {len(measured.images):,} images give NaN or infinite "
            f"values in {info.dtype}: {names}. Serve in float32 or bfloat16"
        )
    if measured.kernels > KERNEL_RATIO * measured.rounding:
        ratio = measured.kernels / measured.rounding
        found.append(
            f"the error is {ratio:.3g} times what rounding to {info.dtype} makes "
            f"({measured.kernels:.2e} and {measured.rounding:.2e}): the kernels ({info.backend}), "
            "or the weights, are not those of the reference. Try --backend torch"
        )
    if info.dtype.startswith("float32") and not measured.errors.median("tokens") <= FLOAT32_ERROR:
        found.append(
            f"the error of float32 is {measured.errors.median('tokens'):.2e}: the kernels "
            f"({info.backend}), or the weights, are not those of the reference"
        )
    return found


def cautions(measured: Measured) -> list[str]:
    """What a user should know, and what need not hurt."""
    info = measured.fast.info
    found = []
    if info.weights.random:
        found.append("the weights are random: nothing here is true of trained ones")
    if len(measured.images) < 100:
        found.append(f"{len(measured.images)} images are few: give 1,000 for a narrow interval")
    outliers = outlier_channels(measured)
    if outliers:
        first = outliers[0]
        found.append(
            f"{len(outliers)} stages have outlier channels, at most {first.ratio:.3g} times the "
            f"median channel: {first.stage} in {_listed(list(map(str, first.channels)), 12)}"
        )
    narrow = [one for one in ranges(measured) if one.share > 0.5 and not _in_float32(one)]
    if narrow and info.dtype == "float16":
        found.append(
            f"{narrow[0].where} reaches {narrow[0].peak:.4g} for {narrow[0].image}, "
            f"{narrow[0].share:.0%} of the range of {info.dtype}"
        )
    tokens = high_norms(measured)
    if tokens.count:
        found.append(
            f"{tokens.count} tokens of {tokens.images} images have {HIGH_NORM_RATIO:g} to "
            f"{tokens.largest:.3g} times the median norm, most often the {tokens.places[0][0]}"
        )
    return found


def kept_as_asked(measured: Measured, keep: float) -> bool:
    """Whether every pooling keeps that share at the lower end of its interval."""
    return all(one.kept.low >= keep for one in measured.agreements)


def _in_float32(one: Range) -> bool:
    return one.stage.endswith(".stream")  # the residual stream is never rounded


def _listed(names: Sequence[str], most: int = _NAMED) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
