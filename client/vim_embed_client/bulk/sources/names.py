"""What names tell: which images are masks and errors, and which files are bands of one image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_WORDS = re.compile(r"[^\W_]+")

# Words for what lies beside an image of the sky: data quality, errors, weights, and the like.
_AUXILIARY_FILES = frozenset({
    "dq", "mask", "masks", "msk", "bpm", "badpix", "flags", "segm", "segmap", "segmentation",
    "err", "error", "errors", "rms", "unc", "uncertainty", "var", "variance", "ivar", "invvar",
    "wht", "weight", "weights", "wgt", "wtmap", "weightmap", "expmap", "psf", "psfs",
})  # fmt: skip
# And those that say it of an extension, but may be part of any file's name.
_AUXILIARY = _AUXILIARY_FILES | {
    "flag", "quality", "seg", "sigma", "std", "stddev", "uncert", "noise", "wt", "exp", "exptime",
    "ctx", "con", "coverage", "nexp", "nimage",
}  # fmt: skip
_SCIENCE = frozenset({"sci", "science", "image", "img"})
BLUE_TO_RED = "ubgvrizyjhk"
# The filters of the large surveys, and those of Hubble and Webb, such as f814w.
_BAND = re.compile(r"[fn]uv|[ubgvrizyjhk]|ks|w[1-4]|vis|f\d{3,4}(w|m|n|lp|x)", re.IGNORECASE)


def words(name: str) -> list[str]:
    """The words of a name, in small letters, without the numbers at their ends."""
    return [_stem(word) for word in _WORDS.findall(name.lower())]


def _stem(word: str) -> str:
    return word.rstrip("0123456789") or word


def is_auxiliary(name: str) -> bool:
    """Whether a name says mask, error, weight or the like, and not that it is the image."""
    found = set(words(name))
    return bool(found & _AUXILIARY)


def is_auxiliary_file(path: str) -> bool:
    """Whether a file's name, or that of its folder, says so, in words that say nothing else."""
    return any(_stem(word) in _AUXILIARY_FILES for word in _WORDS.findall(path.lower()))


def is_science(name: str) -> bool:
    """Whether an extension's name says that it is the image."""
    found = set(words(name))
    return bool(found & _SCIENCE) and not found & _AUXILIARY


def join_groups(
    paths: Iterable[str], bands: Sequence[str]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Files that differ in the word for the band alone, and those whose name has no such word.

    The groups are named by the path with `{bands}` in the place of that word; each has a path for
    the bands that are there. A path with several such words goes where most bands are found.
    """
    candidates: dict[str, dict[str, str]] = {}
    places: dict[str, list[str]] = {}
    for path in paths:
        places[path] = [key for key, _ in _templates(path, bands)]
        for key, band in _templates(path, bands):
            candidates.setdefault(key, {})[band] = path
    groups: dict[str, dict[str, str]] = {}
    for keys in places.values():
        if keys:
            best = max(keys, key=lambda key: (len(candidates[key]), keys.index(key)))
            groups[best] = candidates[best]
    return groups, [path for path, keys in places.items() if not keys]


def _templates(path: str, bands: Sequence[str]) -> list[tuple[str, str]]:
    wanted = {band.lower(): band for band in bands}
    listed = ",".join(bands)
    return [
        (f"{path[: word.start()]}{{{listed}}}{path[word.end() :]}", wanted[word[0].lower()])
        for word in _WORDS.finditer(path)
        if word[0].lower() in wanted
    ]


def look_like_bands(paths: Iterable[str]) -> Mapping[str, dict[str, str]]:
    """Groups of files whose names differ in the name of a filter alone, as `join_groups`."""
    base: dict[str, dict[str, str]] = {}
    for path in paths:
        folder, slash, name = path.rpartition("/")
        for word in _WORDS.finditer(name):
            if _BAND.fullmatch(word[0]):
                key = f"{folder}{slash}{name[: word.start()]}{{}}{name[word.end() :]}"
                base.setdefault(key, {})[word[0].lower()] = path
    return {key: found for key, found in base.items() if len(found) > 1}
