"""How rows are taken out of sources, and which of the options that say so were given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vim_embed_pixels.fits import HduName
from vim_embed_pixels.stretch import Stretch
from vim_embed_pixels.surveys import survey_base

# Options of the command line by the field that they fill, in Stretch and in ReadOptions.
_STRETCH = {
    "survey": "--survey", "bands": "--bands", "percentiles": "--percentiles",
    "limits": "--limits", "kind": "--stretch", "softening": "--softening",
    "per_band": "--per-band", "blank": "--blank",
}  # fmt: skip
_REST = {
    "column": "--column", "id_column": "--id-column", "shape": "--shape", "hdus": "--hdu",
    "config": "--config", "resize": "--resize", "stack": "--stack", "crop": "--crop",
    "flip": "--flip", "join_bands": "--join-bands",
}  # fmt: skip
FLUX_OPTIONS = frozenset(_STRETCH.values())


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How rows are taken out of sources.

    column: of tables and data sets, array of an .npz, or extension in a webdataset shard.
    id_column: of tables and data sets, with the ids of rows. config: of data sets that have
    several. shape: of flat lists in tables. stretch: of fluxes. stack: the first axis of a 3-D
    array counts galaxies, not bands. crop: side of the middle square of every image, which
    is all that is taken of it. flip: arrays and FITS images upside down. hdus: of FITS
    files, or ALL_HDUS. join_bands: the files whose names differ in these words are one image, of
    which they are the red, green and blue band. resize: uint8 arrays too to the model's size.
    """

    column: str | None = None
    id_column: str | None = None
    config: str | None = None
    shape: tuple[int, ...] | None = None
    stretch: Stretch = field(default_factory=Stretch)
    stack: bool = False
    crop: int | None = None
    flip: bool = False
    hdus: tuple[HduName, ...] | None = None
    join_bands: tuple[str, ...] | None = None
    resize: bool = False

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> ReadOptions:
        """The options that `identity` told, also after a way through JSON."""
        known = {one.name for one in fields(cls)} & identity.keys()
        told = {name: _tuples(identity[name]) for name in known - {"stretch"}}
        stretch = {
            one.name: _tuples(value)
            for one in fields(Stretch)
            if (value := identity.get("stretch", {}).get(one.name)) is not None
        }
        return cls(**told, stretch=Stretch(**stretch))

    def identity(self) -> dict[str, Any]:
        """Everything that changes rows."""
        return asdict(self)

    @property
    def fluxes(self) -> bool:
        """Whether one was given that only fluxes have a use for."""
        return self.stretch != Stretch()

    def given(self) -> frozenset[str]:
        """Those that differ from what they are when left out, as the command line has them."""
        base = survey_base(self.stretch.survey)
        stretch = {
            flag for name, flag in _STRETCH.items()
            if getattr(self.stretch, name) != getattr(base, name)
        }  # fmt: skip
        # Percentiles in place of a survey's limits are not told by their values.
        if base.limits and not self.stretch.limits:
            stretch = stretch - {"--limits"} | {"--percentiles"}
        if self.stretch.survey:
            stretch.add("--survey")
        plain = ReadOptions()
        rest = {flag for name, flag in _REST.items() if getattr(self, name) != getattr(plain, name)}
        return frozenset(stretch | rest)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
