"""What names of images tell: which are masks and errors, and which the image of the sky."""

from __future__ import annotations

import re

WORD = re.compile(r"[^\W_]+")

# Words for what lies beside an image of the sky: data quality, errors, weights, and the like.
AUXILIARY_FILES = frozenset({
    "dq", "mask", "masks", "maskbits", "msk", "bpm", "badpix", "flags", "segm", "segmap",
    "segmentation",
    "flag", "flg", "bgmod", "skybg", "chi2", "blobmodel", "galdepth", "psfsize", "nexp", "ctx",
    "err", "error", "errors", "rms", "unc", "uncertainty", "var", "variance", "ivar", "invvar",
    "wht", "weight", "weights", "wgt", "wtmap", "weightmap", "expmap", "psf", "psfs",
    "wei", "wt", "expwt", "conf", "cov", "rrhr",
})  # fmt: skip
# And those that say it of an extension, but may be part of any file's name.
_AUXILIARY = AUXILIARY_FILES | {
    "quality", "seg", "sigma", "std", "stddev", "uncert", "noise", "exp", "exptime", "con",
    "coverage", "nimage", "confidence", "background", "bkg", "depth",
}  # fmt: skip
_SCIENCE = frozenset({"sci", "science", "image", "img"})
BLUE_TO_RED = "ubgvrizyjhk"


def words(name: str) -> list[str]:
    """The words of a name, in small letters, without the numbers at their ends."""
    return [stem(word) for word in WORD.findall(name.lower())]


def stem(word: str) -> str:
    """A word without the number at its end."""
    return word.rstrip("0123456789") or word


def is_auxiliary(name: str) -> bool:
    """Whether a name says mask, error, weight or the like, and not that it is the image."""
    return bool(set(words(name)) & _AUXILIARY)


def is_science(name: str) -> bool:
    """Whether an extension's name says that it is the image."""
    found = set(words(name))
    return bool(found & _SCIENCE) and not found & _AUXILIARY
