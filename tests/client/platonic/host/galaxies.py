"""Simulated galaxies in the column layout of the host's data sets, as streaming data sets.

Each galaxy is an inclined exponential disk with a bulge, seen by two instruments.
"""

import os
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
from datasets import Features, IterableDataset, List, Value

COUNT = int(os.environ.get("TEST_GALAXIES", "8"))
FLAT = 3  # this galaxy's JWST band 3 is constant, so the host filters it out
PRECOMPUTED = 32
_HSC = (np.array([0.2, 0.4, 0.6, 0.9, 1.0]), 160)
_SECOND = {
    "jwst": (np.array([1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 3.0]), 96),
    "legacysurvey": (np.array([0.006, 0.012, 0.018, 0.025]), 160),
}
_IMAGE = {"flux": List(List(List(Value("float32")))), "band": List(Value("string"))}


def load_dataset(path: str, *, split: str, streaming: bool) -> IterableDataset:
    """What the host asks for, by the name on the Hub."""
    assert split == "train"
    assert streaming
    survey = path.removeprefix("Smith42/").removesuffix("_hsc_crossmatched")
    if survey in _SECOND:
        return _stream({"hsc_image": _IMAGE, f"{survey}_image": _IMAGE}, survey)
    if survey in ("sdss", "desi"):
        return _stream({"image": _IMAGE}, survey)
    column = {"Shashwat20/SDSS_Interpolated": "embedding", "Smith42/specformer_desi": "embeddings"}
    return _stream({column[path]: List(Value("float32"))}, "")


def _stream(columns: dict[str, Any], survey: str) -> IterableDataset:
    keywords = {"columns": tuple(columns), "survey": survey}
    return datasets.IterableDataset.from_generator(
        _rows, features=Features(columns), gen_kwargs=keywords
    )


def _rows(columns: tuple[str, ...], survey: str) -> Iterator[dict[str, Any]]:
    for index in range(COUNT):
        yield {column: _value(column, survey, index) for column in columns}


def _value(column: str, survey: str, index: int) -> Any:
    if column.startswith("embedding"):
        return np.random.default_rng(index).standard_normal(PRECOMPUTED).astype(np.float32)
    second = column.removesuffix("_image") in _SECOND
    bands, size = _SECOND[survey] if second else _HSC
    flux = _galaxy(index, bands, size)
    if survey == "jwst" and second and index == FLAT:
        flux[3] = 0.0
    return {"flux": flux, "band": [f"{survey}-{n}" for n in range(len(bands))]}


def _galaxy(index: int, bands: np.ndarray, size: int) -> np.ndarray:
    """(bands, size, size) float32 flux of galaxy `index`."""
    shape, noise = np.random.default_rng(index), np.random.default_rng((index, size))
    angle, flattening = shape.uniform(0, np.pi), shape.uniform(0.3, 1.0)
    scale, bulge, colour = shape.uniform(0.05, 0.15), shape.uniform(0, 2), shape.uniform(0.3, 1.5)
    y, x = np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    radius = np.hypot(along, across / flattening)
    light = np.exp(-radius / scale) + bulge * np.exp(-((radius / (scale / 3)) ** 2))
    reddening = np.linspace(colour, 1, len(bands))
    flux = (bands * reddening)[:, None, None] * light
    flux += noise.normal(0, 0.02, flux.shape) * bands[:, None, None]
    return flux.astype(np.float32)
