"""A certificate of precision: what a model keeps of float32 in a faster dtype, on given images.

`vim-embed-server certify` writes it (certify/), `serve --certificate` reads it. Plain data, no
torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from vim_embed.types.model_info import ModelInfo

FORMAT = "vim-embed certificate of precision, 1"


class CertificateError(ValueError):
    """A certificate that cannot be read, or does not fit; the message names the fix."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Of each image's k nearest neighbours by one pooling, the share that the dtype keeps.

    std_error: by the jackknife over the images. low, high: a 95 % interval.
    """

    pooling: str
    kept: float
    std_error: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What was measured, of what, and on what.

    images: how many. speed: images a second in this dtype over those in float32, on the same
    machine. faults: what makes the dtype unfit for the model, in words; empty if nothing does.
    """

    model: str
    dtype: str
    backend: str
    device: str
    weights_digest: str
    preprocessing_digest: str
    images_digest: str
    images: int
    k: int
    kept: tuple[Kept, ...]
    speed: float
    faults: tuple[str, ...]
    version: str
    torch_version: str
    source: str = ""

    @property
    def least(self) -> float:
        """The lowest end of the intervals of all poolings."""
        return min(one.low for one in self.kept)

    def is_for(self, model: str) -> bool:
        """Whether a model of this name is the one: vim-tiny-float16 is vim-tiny in float16."""
        return model in (self.model, f"{self.model}-{self.dtype}")

    def statement(self, pooling: str) -> str:
        """What an embedding by this pooling may say of itself; empty where it was not measured."""
        for one in self.kept:
            if one.pooling == pooling:
                half = max(one.high - one.kept, one.kept - one.low)
                return (
                    f"{self.dtype}, {one.kept:.3f} ± {half:.3f} of neighbours kept on "
                    f"{self.images:,} images"
                )
        return ""

    def misfits(self, info: ModelInfo, device: str, version: str, torch_version: str) -> list[str]:
        """In what a loaded model, or the place where it runs, is not what was certified."""
        have = {
            "weights_digest": info.weights.digest,
            "preprocessing_digest": info.preprocessing.digest,
            "dtype": info.dtype,
            "backend": info.backend,
            "device": device,
            "version": version,
            "torch_version": torch_version,
        }
        return [
            f"{name.replace('_', ' ')} is {value}, certified was {getattr(self, name)}"
            for name, value in have.items()
            if value != getattr(self, name)
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, and back by `of`."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def of(cls, told: Mapping[str, Any], source: str = "") -> Self:
        """From `as_dict`, whatever else is beside it. Raises CertificateError."""
        if told.get("format") != FORMAT:
            raise CertificateError(
                f"{source} is no certificate of this version: make one with `vim-embed-server "
                "certify`"
            )
        try:
            kept = tuple(Kept(**one) for one in told["kept"])
            given = {name: told[name] for name in cls.__dataclass_fields__ if name != "source"}
            return cls(**{**given, "kept": kept, "faults": tuple(told["faults"])}, source=source)
        except (KeyError, TypeError) as error:
            raise CertificateError(f"{source} is a damaged certificate: {error!r}") from error


def parse_certificate(text: str, source: str) -> Certificate:
    """From the JSON file that `certify` writes. source: its name. Raises CertificateError."""
    try:
        told = json.loads(text)
    except ValueError as error:
        raise CertificateError(
            f"{source} is not JSON: give the .json file that `vim-embed-server certify` wrote"
        ) from error
    if not isinstance(told, dict):
        raise CertificateError(f"{source} is no certificate")
    return Certificate.of(told.get("certificate", told), source)
