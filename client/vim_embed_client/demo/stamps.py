"""Finds the galaxies of the Hubble picture and cuts stamps around them; knows no telescope.

Stamps of sources that are close on the sky overlap. Among the 1,000 brightest, some nearest
neighbours are therefore alike because they show the same galaxies, in both views.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.feature import peak_local_max
from skimage.filters import gaussian
from skimage.measure import label, regionprops
from skimage.segmentation import watershed

from vim_embed_client.errors import InputError

Array = NDArray[Any]
Picture = NDArray[np.uint8]

STAMP_PIXELS = 48

# The two foreground stars with diffraction spikes, (x, y) in pixels; all else may be a galaxy.
_STARS = np.array([[253.0, 166.0], [754.0, 578.0]])
_STAR_RADIUS = 8.0

_SMOOTHING = 1.5  # pixels; about the picture's own point-spread function
_THRESHOLD = 4.0  # standard deviations of the smoothed sky
_PEAK_DISTANCE = 4  # pixels between the peaks of two sources
_LEAST_AREA = 12  # pixels over the threshold
_LEAST_DISTANCE = 8.0  # pixels, and 1.5 radii of the brighter source


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Detected sources, brightest first.

    positions: (N, 2) x and y of the centroids in pixels, 0 at the centre of the first pixel.
    flux: (N,) sum over the sky, in grey levels. radius: (N,) of a circle of the same area.
    """

    positions: NDArray[np.float64]
    flux: NDArray[np.float64]
    radius: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.positions)

    def brightest(self, count: int) -> Sources:
        """The first `count` sources; InputError, with what there is, if there are fewer."""
        if count > len(self):
            raise InputError(
                f"{count} sources were asked for, and {len(self)} can be found in the picture"
            )
        return Sources(
            positions=self.positions[:count], flux=self.flux[:count], radius=self.radius[:count]
        )


def hubble_picture() -> Picture:
    """(872, 1000, 3) the Hubble eXtreme Deep Field (NASA, ESA, STScI-2012-37), sRGB.

    What `skimage.data.hubble_deep_field()` gives, read straight from the installed wheel: that
    function would download a file that it misses.
    """
    path = files("skimage") / "data" / "hubble_deep_field.jpg"
    with path.open("rb") as file, Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def find_sources(picture: Picture, *, stamp: int = STAMP_PIXELS) -> Sources:
    """Sources of a (H, W, 3) picture whose stamp lies wholly inside; always the same ones.

    Smoothing, a threshold over the sky, and a watershed that parts blended neighbours; of two
    sources too close together the brighter stays, so that no galaxy is counted by its parts.
    """
    light = picture.mean(axis=2)
    smooth = gaussian(light, _SMOOTHING, preserve_range=True)
    sky = float(np.median(smooth))
    noise = 1.4826 * float(np.median(np.abs(smooth - sky)))
    mask = smooth > sky + _THRESHOLD * noise
    segments = watershed(-smooth, _peaks(smooth, mask), mask=mask)
    found = _measure(segments, light - sky)
    inside = _inside(found[:, :2], picture.shape, stamp) & ~_near_star(found[:, :2])
    found = _distinct(found[inside])
    return Sources(positions=found[:, :2], flux=found[:, 2], radius=found[:, 3])


def stamp_boxes(positions: Array, stamp: int = STAMP_PIXELS) -> NDArray[np.float64]:
    """(N, 4) left, top, right, bottom of square stamps, in whole pixels counted from the edge."""
    corner = np.rint(positions + 0.5 - stamp / 2)
    return np.concatenate([corner, corner + stamp], axis=1)


def cut_stamps(
    picture: Picture, boxes: Array, *, size: int = 224, interpolation: str = "bicubic"
) -> NDArray[np.uint8]:
    """(N, 3, size, size) the boxes of an RGB picture, resized by Pillow.

    boxes: (N, 4) in this picture's pixels; edges may lie between pixels. size, interpolation:
    what the model publishes.
    """
    image = Image.fromarray(picture)
    method = Image.Resampling[interpolation.upper()]
    stamps = np.empty((len(boxes), 3, size, size), np.uint8)
    for stamp, box in zip(stamps, boxes.tolist(), strict=True):
        resized = image.resize((size, size), method, box=tuple(box))
        stamp[:] = np.asarray(resized).transpose(2, 0, 1)
    return stamps


def _peaks(smooth: Array, mask: Array) -> Array:
    peaks = peak_local_max(
        smooth, min_distance=_PEAK_DISTANCE, labels=label(mask), exclude_border=False
    )
    markers = np.zeros(smooth.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return markers


def _measure(segments: Array, light: Array) -> Array:
    """(N, 4) x, y, flux and radius of the segments that are large enough, brightest first."""
    rows = []
    for region in regionprops(segments, intensity_image=light):
        if region.area >= _LEAST_AREA:
            y, x = region.centroid_weighted
            rows.append((x, y, region.intensity_mean * region.area, (region.area / np.pi) ** 0.5))
    found = np.array(rows, dtype=np.float64).reshape(-1, 4)
    return found[np.argsort(-found[:, 2], kind="stable")]


def _inside(positions: Array, shape: tuple[int, ...], stamp: int) -> NDArray[np.bool_]:
    boxes = stamp_boxes(positions, stamp)
    height, width = shape[:2]
    inside: NDArray[np.bool_] = np.all((boxes >= 0) & (boxes <= [width, height] * 2), axis=1)
    return inside


def _near_star(positions: Array) -> NDArray[np.bool_]:
    distances = np.linalg.norm(positions[:, None] - _STARS, axis=2)
    near: NDArray[np.bool_] = (distances < _STAR_RADIUS).any(axis=1)
    return near


def _distinct(found: Array) -> Array:
    kept: list[int] = []
    for i, (x, y, _, _) in enumerate(found):
        others = found[kept]
        apart = np.hypot(others[:, 0] - x, others[:, 1] - y)
        if (apart >= np.maximum(_LEAST_DISTANCE, 1.5 * others[:, 3])).all():
            kept.append(i)
    return found[kept]
