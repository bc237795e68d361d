"""Which reader a source belongs to: the table of formats, by the endings of names.

A new format is a module with a reader, and a row of FORMATS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vim_embed_client.bulk.sources.arrays import NpyReader, NpzReader
from vim_embed_client.bulk.sources.blank_limit import BlankLimit
from vim_embed_client.bulk.sources.catalogue import CatalogueReader
from vim_embed_client.bulk.sources.content import Content
from vim_embed_client.bulk.sources.files import PassOver, find_files
from vim_embed_client.bulk.sources.fits import FitsReader
from vim_embed_client.bulk.sources.fits_tables import FitsTableReader
from vim_embed_client.bulk.sources.hdf5 import Hdf5Reader
from vim_embed_client.bulk.sources.huggingface import PREFIX, HfReader
from vim_embed_client.bulk.sources.joined import JoinedReader
from vim_embed_client.bulk.sources.names import about_missing_bands, join_groups, look_like_bands
from vim_embed_client.bulk.sources.options import FLUX_OPTIONS, MASK_OPTIONS, ReadOptions
from vim_embed_client.bulk.sources.ours import WithoutOurs, may_be_ours
from vim_embed_client.bulk.sources.parquet import ParquetReader
from vim_embed_client.bulk.sources.reader import (
    Description,
    ImageReader,
    NamedFaults,
    Reader,
    Skipped,
    UnreadReader,
    readable,
)
from vim_embed_client.bulk.sources.webdataset import TarReader
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.packing import unpacked_name
from vim_embed_client.sky.hats import THUMBNAIL

__all__ = ["FORMATS", "ReadOptions", "band_remark", "find_sources", "open_reader", "without_effect"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of file. endings: of names, in small letters, to which those of PACKED may come.

    options: those of the command line that can have an effect on some file of this kind. magic:
    how such a file begins, to know it by where its name has another ending. bands: whether it
    can be a band of an image.
    """

    name: str
    endings: tuple[str, ...]
    reader: Callable[[Content, ReadOptions], Reader]
    options: frozenset[str] = frozenset()
    magic: bytes = b""
    bands: bool = False


_TABLE_OPTIONS = frozenset({"--column", "--id-column", "--keep"})
_ARRAY_OPTIONS = FLUX_OPTIONS | {"--max-blank", "--crop", "--flip", "--stack", "--resize"}
_FITS_OPTIONS = frozenset({"--hdu", "--id-header"}) | MASK_OPTIONS

FORMATS: tuple[Format, ...] = (
    Format(
        name="an image",
        endings=(
            ".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm",
        ),
        reader=lambda content, options: ImageReader(content, options.crop),
        options=frozenset({"--crop"}),
    ),
    Format(
        name=".npy", endings=(".npy",), reader=NpyReader, options=_ARRAY_OPTIONS,
        magic=b"\x93NUMPY", bands=True,
    ),
    Format(
        name=".npz", endings=(".npz",), reader=NpzReader, options=_ARRAY_OPTIONS | {"--column"},
    ),
    Format(
        name="a tar file", endings=(".tar", ".tgz", ".tbz", ".tbz2", ".txz"),
        reader=lambda content, options: TarReader(content, options, _open_member),
        options=_ARRAY_OPTIONS | _TABLE_OPTIONS | _FITS_OPTIONS | {"--shape"},
    ),
    Format(
        name="Parquet", endings=(".parquet",), reader=ParquetReader,
        options=_ARRAY_OPTIONS - {"--stack"} | _TABLE_OPTIONS | {"--shape"},
        magic=b"PAR1",
    ),
    Format(
        name="FITS", endings=(".fits", ".fit", ".fts", ".fz"),
        reader=lambda content, options: (
            FitsReader if options.column is None else FitsTableReader
        )(content, options),
        options=_ARRAY_OPTIONS | _FITS_OPTIONS | _TABLE_OPTIONS, magic=b"SIMPLE  =", bands=True,
    ),
    Format(
        name="HDF5", endings=(".h5", ".hdf5", ".hdf", ".he5"), reader=Hdf5Reader,
        options=_ARRAY_OPTIONS - {"--stack"} | _TABLE_OPTIONS, magic=b"\x89HDF\r\n",
    ),
)  # fmt: skip
_HF_OPTIONS = frozenset({"--config"}).union(
    *(one.options for one in FORMATS if one.name == "Parquet")
)

# Endings of files that hold images but are not read, and what to do with them.
_UNREAD = {
    (".asdf",): "ASDF is not read: save the images as FITS",
    (".zip",): "zip files are not read: unpack it, or give hf:FOLDER for a data set of them",
    (".rar", ".7z"): "such archives are not read: unpack it",
    (".pt", ".pth", ".pkl", ".pickle"): "pickles are never loaded: save the images as .npy",
    (".zarr", ".nc", ".mat"): "this format is not read: save the images as .npy",
}  # fmt: skip


def find_sources(
    paths: Sequence[str],
    *,
    options: ReadOptions | None = None,
    leave_out: Sequence[Path] = (),
    pass_over: PassOver = lambda skipped: None,
) -> list[str]:
    """Files in the order of their names, then `hf:` data sets in the order given.

    Files that `options` join are one source: their path with `{r,g,b}` for the band. With
    `options.sky`, the paths are catalogues, in the order given.
    leave_out, pass_over: as of find_files.
    Raises ConfigurationError for a path or pattern that leads to nothing, and for bands to join of
    which no file is.
    """
    if options is not None and options.sky is not None:
        return list(dict.fromkeys(paths))
    sets = list(dict.fromkeys(path for path in paths if path.startswith(PREFIX)))
    named = [path for path in paths if not path.startswith(PREFIX)]
    files = find_files(named, _why_not, leave_out=leave_out, pass_over=pass_over)
    if options is not None and options.join_bands is not None:
        files = _joined(files, options.join_bands, pass_over)
    return files + sets


def open_reader(source: str, options: ReadOptions) -> Reader:
    """The reader of one source, whose every fault is an InputError; nothing is opened yet."""
    if options.sky is not None:
        return NamedFaults(CatalogueReader(source, options), "cannot be cut out")
    masks = options.masks
    if masks is None:
        return _opened(source, options)
    alone = masks.mask is None and masks.weight is None
    return BlankLimit(_opened(source, options.filled() if alone else options), masks.max_blank)


def _opened(source: str, options: ReadOptions) -> Reader:
    """The same without a limit of blank pixels."""
    if source.startswith(PREFIX):
        return NamedFaults(HfReader(source, options), "cannot be read as a data set")
    if options.join_bands is not None and (bands := _bands_of(source, options.join_bands)):
        joined = JoinedReader(source, bands, options, lambda path: _opened(path, options))
        return NamedFaults(joined, "cannot be joined")
    content = Content(source, path=source)
    if not os.path.isfile(source):  # ImageReader says what it is, and opens no pipe
        return NamedFaults(ImageReader(content), "cannot be read")
    reader = _reader(content, options, format_of(source) or _sniffed(source))
    return WithoutOurs(reader, source) if may_be_ours(source) else reader


def format_of(name: str) -> Format | None:
    """The format that a file's name tells, or None."""
    lower = unpacked_name(name).lower()
    return next((one for one in FORMATS if lower.endswith(one.endings)), None)


def without_effect(sources: Iterable[str], options: ReadOptions) -> list[str]:
    """The options given that have an effect on none of the sources.

    Files are looked into only until each option has an effect on one of them. One that cannot be
    read might have had a use for all that its format knows.
    """
    left = set(options.given())
    for source in sources:
        if not left:
            break
        if left & _possible(source, options):
            left -= _effective(source, options)
    return sorted(left)


def band_remark(sources: Sequence[str], options: ReadOptions) -> str | None:
    """What to say where files look like bands of one image, which nobody asked to join."""
    if options.join_bands is not None or options.sky is not None:
        return None
    files = [source for source in sources if (found := format_of(source)) and found.bands]
    for template, bands in look_like_bands(files).items():
        try:
            told = [open_reader(path, options).describe() for path in bands.values()]
        except InputError:
            continue
        taken = [image for one in told for image in one.images if not image.note]
        if all(len(image.shape) == 2 for image in taken):
            listed = ",".join(bands)
            return (
                f"{template.replace('{}', f'{{{listed}}}')} look like bands of one image, and are "
                f"embedded as {len(bands)} grey ones: --join-bands R,G,B makes one of each three"
            )
    return None


def _reader(content: Content, options: ReadOptions, kind: Format | None) -> Reader:
    if kind is None:
        reason = _unread(content.name)
        image = ImageReader(content, options.crop)
        return NamedFaults(UnreadReader(content, reason) if reason else image, "cannot be read")
    read_as = "" if kind is FORMATS[0] else f" as {kind.name}"
    return NamedFaults(kind.reader(content, options), f"cannot be read{read_as}")


def _open_member(content: Content, options: ReadOptions) -> Reader | None:
    """The reader of a member of an archive, or None where it is no image."""
    kind = format_of(content.name)
    return None if kind is None or kind.reader is _TAR.reader else _reader(content, options, kind)


_TAR = next(one for one in FORMATS if one.name == "a tar file")


def _sniffed(path: str) -> Format | None:
    """The format by a file's first bytes, for names that tell none."""
    if _unread(path):
        return None
    try:
        with Content(path, path=path).open() as file:
            start = file.read(16)
    except Exception:  # the reader says what is wrong
        return None
    return next((one for one in FORMATS if one.magic and start.startswith(one.magic)), None)


def _unread(name: str) -> str | None:
    lower = unpacked_name(name).lower()
    return next((why for endings, why in _UNREAD.items() if lower.endswith(endings)), None)


def _why_not(path: str) -> str | None:
    name = os.path.basename(path)
    if name.startswith("."):
        return "a hidden file"
    if name == THUMBNAIL:
        return "rows of a HATS catalogue again, which its other files have"
    if format_of(name) is not None:
        return None
    ending = os.path.splitext(name)[1]
    plain = f"{ending} files are not read" if ending else "files without an ending are not read"
    return _unread(name) or plain


def _joined(files: list[str], bands: Sequence[str], pass_over: PassOver) -> list[str]:
    """The files, of which those that are bands of one image have become one source."""
    may_be = [file for file in files if (found := format_of(file)) and found.bands]
    groups, unnamed = join_groups(may_be, bands)
    there = {band: [one[band] for one in groups.values() if band in one] for band in bands}
    if may_be and (lacks := about_missing_bands(there, bands, unnamed)):
        raise ConfigurationError(lacks)
    for file in unnamed:
        reason = f"its name has none of the bands {', '.join(bands)} to join it by"
        pass_over(Skipped(id=readable(file), reason=reason))
    return sorted({*groups, *(set(files) - set(may_be))})


def _bands_of(source: str, bands: Sequence[str]) -> dict[str, str]:
    """The files of a joined source, by their bands, as far as they are there."""
    head, mark, tail = source.partition(f"{{{','.join(bands)}}}")
    if not mark:
        return {}
    spelt = {band: (band, band.lower(), band.upper(), band.title()) for band in bands}
    paths = {band: [f"{head}{word}{tail}" for word in words] for band, words in spelt.items()}
    return {
        band: next(filter(os.path.exists, some))
        for band, some in paths.items()
        if any(map(os.path.exists, some))
    }


def _possible(source: str, options: ReadOptions) -> frozenset[str]:
    """The options that may have an effect, as far as a name tells."""
    if options.sky is not None:
        return options.given()
    if source.startswith(PREFIX):
        return _HF_OPTIONS
    joined = options.join_bands is not None and bool(_bands_of(source, options.join_bands))
    kind = format_of(source) or _sniffed(source)
    found = kind.options if kind else frozenset()
    return found | {"--join-bands"} if joined else found


def _effective(source: str, options: ReadOptions) -> frozenset[str]:
    try:
        found: Description = open_reader(source, options).describe()
    except InputError:
        return _possible(source, options)
    return found.options
