"""What names of files tell: which are masks and errors, and which are bands of one image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from vim_embed_pixels.names import AUXILIARY_FILES, WORD, stem

# The filters of the large surveys, and those of Hubble and Webb, such as f814w.
_BAND = re.compile(r"[fn]uv|[ubgvrizyjhk]|ks|w[1-4]|vis|f\d{3,4}(w|m|n|lp|x)", re.IGNORECASE)


def is_auxiliary_file(path: str) -> bool:
    """Whether a file's name, or that of its folder, says so, in words that say nothing else."""
    return any(stem(word) in AUXILIARY_FILES for word in WORD.findall(path.lower()))


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
        for word in WORD.finditer(path)
        if word[0].lower() in wanted
    ]


def about_missing_bands(
    there: Mapping[str, Sequence[str]], bands: Sequence[str], others: Sequence[str]
) -> str | None:
    """What to say where there is no file of one of the bands to join; None where each has some.

    there: files by their band. others: files that are of none of the bands.
    """
    lacking = [band for band in bands if not there.get(band)]
    if not lacking:
        return None
    fix = "name the bands of the files in --join-bands, or give the files of all bands"
    found = [f"{band} ({_some(there[band])})" for band in bands if there.get(band)]
    if not found:
        return f"no file is of one of the bands {', '.join(bands)}, but {_some(others)}: {fix}"
    rest = f"; of none of them is {_some(others)}" if others else ""
    return (
        f"no file of band {' or '.join(lacking)} was found, only of {' and '.join(found)}{rest}: "
        f"{fix}"
    )


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 2:,} more" if len(paths) > 2 else ""
    return ", ".join(paths[:2]) + more


def band_in_name(path: str, bands: Sequence[str]) -> str | None:
    """The band that a file's name tells, by its last word that is one; else its folders' names."""
    for part in reversed(path.split("/")):
        found = _templates(part, bands)
        if found:
            return found[-1][1]
    return None


def look_like_bands(paths: Iterable[str]) -> Mapping[str, dict[str, str]]:
    """Groups of files whose names differ in the name of a filter alone, as `join_groups`."""
    base: dict[str, dict[str, str]] = {}
    for path in paths:
        folder, slash, name = path.rpartition("/")
        for word in WORD.finditer(name):
            if _BAND.fullmatch(word[0]):
                key = f"{folder}{slash}{name[: word.start()]}{{}}{name[word.end() :]}"
                base.setdefault(key, {})[word[0].lower()] = path
    return {key: found for key, found in base.items() if len(found) > 1}
