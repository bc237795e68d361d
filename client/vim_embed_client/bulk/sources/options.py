"""How rows are taken out of sources, and which of the options that say so were given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from vim_embed_client.errors import ConfigurationError
from vim_embed_pixels.errors import UnusableOptions
from vim_embed_pixels.fits import HduName
from vim_embed_pixels.stretch import Stretch
from vim_embed_pixels.surveys import survey_base

# Options of the command line by the field that they fill, in Stretch and in ReadOptions.
_STRETCH = {
    "survey": "--survey", "bands": "--bands", "percentiles": "--percentiles",
    "limits": "--limits", "zero_point": "--zero-point", "kind": "--stretch",
    "softening": "--softening", "per_band": "--per-band", "blank": "--blank",
}  # fmt: skip
_REST = {
    "column": "--column", "id_column": "--id-column", "shape": "--shape", "hdus": "--hdu",
    "config": "--config", "resize": "--resize", "stack": "--stack", "crop": "--crop",
    "flip": "--flip", "join_bands": "--join-bands", "keep": "--keep", "id_header": "--id-header",
}  # fmt: skip
_MASKS = {
    "mask": "--mask", "mask_flags": "--mask-flags", "weight": "--weight",
    "max_blank": "--max-blank",
}  # fmt: skip
_SKY = _MASKS | {
    "size": "--size", "scale": "--scale", "north_up": "--north-up", "position": "--position",
}  # fmt: skip
FLUX_OPTIONS = frozenset(_STRETCH.values())
SKY_OPTIONS = frozenset(_SKY.values()) | {"--catalogue"}
MASK_OPTIONS = frozenset(_MASKS.values())
Flags = tuple[int | str, ...]  # values of bits, or names of planes


@dataclass(frozen=True, kw_only=True)
class SkyOptions:
    """Cut-outs of images of the sky at a catalogue's positions.

    images: files, folders and patterns of the mosaic. catalogues: the sources, for those who look
    for a row's image later. size: arcseconds along a side. scale:
    arcseconds a pixel; None takes those of the image. north_up: or as the image lies. max_blank:
    the share of pixels that may be masked or off the edge. position: the catalogue's columns of
    right ascension and declination, where their names do not tell. mask, weight: an HDU of the
    image's file, or files with the same pixels: those masked have a flag that is not 0 (one of
    the bits or planes `mask_flags`), or a weight that is not above 0.
    """

    images: tuple[str, ...]
    size: float
    scale: float | None = None
    north_up: bool = False
    max_blank: float = 0.1
    position: tuple[str, str] | None = None
    mask: str | None = None
    weight: str | None = None
    mask_flags: Flags | None = None
    catalogues: tuple[str, ...] = ()

    def given(self) -> frozenset[str]:
        """Those that differ from what they are when left out, as the command line has them."""
        return _given(self, SkyOptions(images=(), size=0.0), _SKY) | {"--catalogue"}


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """Which pixels of images that are no mosaics are blank, and how many may be.

    mask, weight: an HDU of the image's own file, or a file, in whose name `*` stands for the
    image's; they are for FITS images. mask_flags, max_blank: as of SkyOptions.
    """

    mask: str | None = None
    weight: str | None = None
    mask_flags: Flags | None = None
    max_blank: float = 0.1

    def given(self) -> frozenset[str]:
        """Those that differ from what they are when left out, as the command line has them."""
        found = _given(self, MaskOptions(), _MASKS)
        return found if self.mask or self.weight else found | {"--max-blank"}


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
    keep: columns of tables and catalogues that are written beside the embeddings. sky: cut-outs at
    the positions of catalogues, which are the sources then. id_header: the key of FITS headers
    whose value is the id. masks: of images that are no mosaics; what is masked is NaN, and filled
    with the sky where the stretch says nothing else.
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
    keep: tuple[str, ...] = ()
    sky: SkyOptions | None = None
    id_header: str | None = None
    masks: MaskOptions | None = None

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> ReadOptions:
        """The options that `identity` told, also after a way through JSON."""
        known = {one.name for one in fields(cls)} & identity.keys()
        told = {name: _tuples(identity[name]) for name in known - {"stretch", "sky", "masks"}}
        if sky := identity.get("sky"):
            told["sky"] = SkyOptions(**{name: _tuples(value) for name, value in sky.items()})
        if masks := identity.get("masks"):
            told["masks"] = MaskOptions(**{name: _tuples(v) for name, v in masks.items()})
        return cls(**told, stretch=Stretch.of(identity.get("stretch", {})))

    def filled(self) -> ReadOptions:
        """The same with the sky in place of blank pixels, where masks make some."""
        if self.masks is None or self.stretch.blank is not None:
            return self
        return replace(self, stretch=replace(self.stretch, blank="sky"))

    def identity(self) -> dict[str, Any]:
        """Everything that changes rows."""
        return asdict(self)

    @property
    def channels(self) -> int:
        """Bands that the model takes."""
        return self.stretch.channels

    def for_channels(self, channels: int) -> ReadOptions:
        """The same for a model of so many bands.

        Raises ConfigurationError for options that choose another number of them.
        """
        for flag, chosen in (("--join-bands", self.join_bands), ("--hdu", self.hdus)):
            several = len(chosen or ()) > 1
            if channels != 3 and several and len(chosen or ()) < channels:
                raise ConfigurationError(
                    f"the model takes {channels} bands, and {flag} names {len(chosen or ())}"
                )
        try:
            return replace(self, stretch=self.stretch.for_channels(channels))
        except UnusableOptions as error:
            raise ConfigurationError(error.message) from None

    @property
    def fluxes(self) -> bool:
        """Whether one was given that only fluxes have a use for."""
        return self.stretch != Stretch(channels=self.channels)

    def by_flag(self) -> dict[str, Any]:
        """The value of each, as the command line has them; PATHS are the images of mosaics."""
        found = _by_flag(self.stretch, _STRETCH) | _by_flag(self, _REST)
        if self.masks is not None:
            found |= _by_flag(self.masks, _MASKS)
        if self.sky is not None:
            found |= _by_flag(self.sky, _SKY)
            found |= {"PATHS": self.sky.images, "--catalogue": self.sky.catalogues}
        return found

    def given(self) -> frozenset[str]:
        """Those that differ from what they are when left out, as the command line has them."""
        base = survey_base(self.stretch.survey)
        stretch = _given(self.stretch, base, _STRETCH)
        # Percentiles in place of a survey's limits are not told by their values.
        if base.limits and not self.stretch.limits:
            stretch = stretch - {"--limits"} | {"--percentiles"}
        if self.stretch.survey:
            stretch = stretch | {"--survey"}
        parts = [one.given() for one in (self.sky, self.masks) if one is not None]
        return stretch.union(_given(self, ReadOptions(), _REST), *parts)


def _given(options: object, plain: object, flags: Mapping[str, str]) -> frozenset[str]:
    """The flags of the fields in which the options differ from plain ones."""
    return frozenset(
        flag for name, flag in flags.items() if getattr(options, name) != getattr(plain, name)
    )


def _by_flag(options: object, flags: Mapping[str, str]) -> dict[str, Any]:
    return {flag: getattr(options, name) for name, flag in flags.items()}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
