"""Catalogues that astropy reads: FITS, VOTable, ECSV, IPAC, CDS and MRT, SExtractor's."""

from __future__ import annotations

import fnmatch
import io
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.packing import unpacked_name
from vim_embed_client.sky.table_columns import Columns, Part, frame_of, of_astropy
from vim_embed_client.sky.table_files import TableFile
from vim_embed_pixels.fits_library import library

_BYTES = "Byte-by-byte Description of file"
_NUMBERED = re.compile(r"\s*#\s*([0-9]+)\s+[-\w]")
_README = "readme"


class _Astropy(NamedTuple):
    Table: Any
    ascii: Any
    fits: Any


def _astropy() -> _Astropy:
    try:
        from astropy.io import ascii
        from astropy.table import Table
    except ModuleNotFoundError:
        raise ConfigurationError(
            "catalogues in FITS, VOTable, ECSV, and in the layouts of IPAC, CDS and SExtractor, "
            'need astropy: pip install "vim-embed[astro]"'
        ) from None
    return _Astropy(Table, ascii, library())


def fits_tables(file: TableFile) -> list[Part]:
    """The table extensions; compressed images are none."""
    table, _, fits = _astropy()
    with fits.open(file.seekable(), memmap=False) as hdus:
        return [
            Part(number, hdu.name, _in_frame(of_astropy(table.read(hdus, hdu=number)), hdu.header))
            for number, hdu in enumerate(hdus)
            if isinstance(hdu, (fits.BinTableHDU, fits.TableHDU))
            and not isinstance(hdu, fits.CompImageHDU)
        ]


def _in_frame(columns: Columns, header: Any) -> Columns:
    """The columns in the frame that a header tells."""
    told = str(header.get("RADESYS", header.get("RADECSYS", ""))).strip()
    return _framed(columns, frame_of(told, str(header.get("EQUINOX", ""))))


def _framed(columns: Columns, frame: str) -> Columns:
    return {name: column._replace(frame=frame) for name, column in columns.items()}


def is_votable(file: TableFile) -> bool:
    """Whether it begins as XML with the element VOTABLE."""
    return file.start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<") and b"VOTABLE" in file.start


def votables(file: TableFile) -> list[Part]:
    """All tables of a VOTable."""
    _astropy()
    from astropy.io.votable import parse

    parsed = parse(io.BytesIO(file.unpacked()))
    return [
        Part(number, table.name or table.ID or "", _votable_columns(parsed, table))
        for number, table in enumerate(parsed.iter_tables())
    ]


def _votable_columns(parsed: Any, table: Any) -> Columns:
    columns = of_astropy(table.to_table(True))
    systems = {one.ID: one for one in parsed.iter_coosys()}
    for name, column in columns.items():
        field = next((one for one in table.fields if name in (one.name, one.ID)), None)
        system = systems.get(field.ref) if field is not None else None
        if system is not None:
            frame = frame_of(str(system.system or ""), str(system.equinox or ""))
            columns[name] = column._replace(frame=frame)
    return columns


def is_ecsv(file: TableFile) -> bool:
    """Whether its first line says so."""
    return bool(file.head) and file.head[0].startswith("# %ECSV")


def ecsv(file: TableFile) -> list[Part]:
    """The table of an ECSV file, in which Gaia's archive writes `null` for what is missing."""
    read = _astropy().Table.read
    none = [("", "0"), ("null", "0")]
    return [Part(0, "", of_astropy(read(file.text, format="ascii.ecsv", fill_values=none)))]


def is_ipac(file: TableFile) -> bool:
    """Whether names stand between bars above rows that have none at their beginning."""
    lines = [line for line in file.head if line.strip() and not line.startswith("\\")]
    bars = [line.startswith("|") for line in lines]
    return bool(bars) and bars[0] and (file.head[0].startswith("\\") or not all(bars))


def ipac(file: TableFile) -> list[Part]:
    """The table of an IPAC file; `null` and what its header says are missing."""
    found = _read(file, "ipac")
    told = {key.upper(): one["value"] for key, one in found.meta.get("keywords", {}).items()}
    return [Part(0, "", _in_frame(of_astropy(found), told))]


def is_cds(file: TableFile) -> bool:
    """Whether its own header describes its bytes, or a ReadMe beside it."""
    return any(_BYTES in line for line in file.head) or _readme(file.path) is not None


def cds(file: TableFile) -> list[Part]:
    """The table of a file of CDS, or of a machine-readable table of the AAS journals."""
    readme = _readme(file.path)
    if readme is None:
        return [Part(0, "", _described(_read(file, "mrt" if _is_mrt(file) else "cds")))]
    with tempfile.TemporaryDirectory() as folder:  # astropy finds it in the ReadMe by its name
        copy = Path(folder) / unpacked_name(file.path.name)
        copy.write_text(file.text)
        found = _astropy().ascii.read(str(copy), format="cds", readme=str(readme))
    return [Part(0, "", _described(found))]


def _is_mrt(file: TableFile) -> bool:
    return file.head[0].startswith("Title:")


def _described(table: Any) -> Columns:
    """The columns, in the old frame where the explanation of a position says B1950."""
    columns = of_astropy(table)
    for name, column in columns.items():
        if name.lower().startswith(("ra", "de")) and "1950" in (table[name].description or ""):
            columns[name] = column._replace(frame=frame_of("fk4", "1950"))
    return columns


def _readme(path: Path) -> Path | None:
    """The ReadMe beside a file that describes it."""
    for beside in path.parent.iterdir():
        if beside.name.lower() == _README and beside.is_file():
            lines = beside.read_text("utf-8", "replace").splitlines()
            told = [line.partition(_BYTES)[2].lstrip("s(): ") for line in lines if _BYTES in line]
            patterns = [pattern for line in told for pattern in line.split()]
            if any(fnmatch.fnmatch(unpacked_name(path.name), pattern) for pattern in patterns):
                return beside
    return None


def is_sextractor(file: TableFile) -> bool:
    """Whether remarks at its top number the columns from 1 on."""
    found = [int(m[1]) for line in _remarks(file.head) if (m := _NUMBERED.match(line))]
    return len(found) > 1 and found[0] == 1 and found == sorted(set(found))


def _remarks(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        if line.strip() and not line.startswith("#"):
            return
        yield line


def sextractor(file: TableFile) -> list[Part]:
    """The table of SExtractor's ASCII_HEAD; its values as text, as those of other texts."""
    text = {"*": [_astropy().ascii.convert_numpy(str)]}
    return [Part(0, "", of_astropy(_read(file, "sextractor", converters=text)))]


def _read(file: TableFile, form: str, **more: Any) -> Any:
    lines = file.text.splitlines()
    if not lines:
        raise InputError(f"{file.path} is empty")
    return _astropy().ascii.read(lines, format=form, **more)
