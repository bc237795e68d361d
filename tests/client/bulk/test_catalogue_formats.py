"""Catalogues of every format: each row is read as what it is, or the file is refused."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from vim_embed_client.bulk.sources.catalogue import CatalogueReader
from vim_embed_client.bulk.sources.files import find_files
from vim_embed_client.bulk.sources.options import ReadOptions, SkyOptions
from vim_embed_client.bulk.sources.reader import Item, Skipped
from vim_embed_client.bulk.sources.registry import _why_not
from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.sky.positions import read_positions, table_with_positions
from vim_embed_client.sky.tables import read_table

from .hats_files import write_hats
from .skies import around, painted, tangent, write

BIG = 2**60 + 1  # which no float64 holds
RA, DEC = np.array([150.1, 150.2, 359.9]), np.array([2.5, -2.25, 89.0])
Make = Callable[[Path], Path]


def _written(path: Path, table: Table, kind: str | None = None) -> Path:
    table.write(path, format=kind)
    return path


def _text(name: str, text: str, encoding: str = "utf-8") -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(text.encode(encoding))
        return folder / name

    return make


def _plain(**more: Any) -> Table:
    return Table({"id": BIG + np.arange(3), "ra": RA, "dec": DEC, **more})


def _with_units() -> Table:
    table = _plain(z=MaskedColumn([0.1, 0.2, 0.3], mask=[False, True, False]))
    table["ra"], table["dec"] = np.radians(RA) * units.rad, (DEC * 60) * units.arcmin
    return table


def _capitals(folder: Path) -> Path:
    """Units as the standard has them not."""
    columns = [fits.Column("id", "K", array=BIG + np.arange(3))]
    columns += [
        fits.Column("ra", "D", "Degrees", array=RA),
        fits.Column("dec", "D", "DEG", array=DEC),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(folder / "cat.fits")
    return folder / "cat.fits"


def _colons() -> Table:
    """Their unit says degrees, which colons alone would not."""
    table, sky = _plain(), SkyCoord(RA, DEC, unit="deg")
    for name, angle in (("ra", sky.ra), ("dec", sky.dec)):
        table[name] = angle.to_string(unit="deg", sep=":", precision=6)
        table[name].unit = "deg"
    return table


def _old_fits(folder: Path) -> Path:
    """Positions of FK4, as the header of the table says."""
    sky, table = SkyCoord(RA, DEC, unit="deg").fk4, _plain()
    table["ra"], table["dec"] = sky.ra.degree, sky.dec.degree
    hdu = fits.BinTableHDU(table)
    hdu.header["EQUINOX"] = 1950.0
    hdu.writeto(folder / "cat.fits")
    return folder / "cat.fits"


def _old_votable(folder: Path) -> Path:
    sky = SkyCoord(RA, DEC, unit="deg").fk4
    fields = "".join(
        f'<FIELD name="{name}" datatype="{kind}" {more}/>'
        for name, kind, more in (
            ("id", "long", ""), ("ra", "double", 'unit="deg" ref="B"'),
            ("dec", "double", 'unit="deg" ref="B"'),
        )
    )  # fmt: skip
    places = zip(sky.ra.degree.tolist(), sky.dec.degree.tolist(), strict=True)
    rows = "".join(
        f"<TR><TD>{BIG + row}</TD><TD>{ra!r}</TD><TD>{dec!r}</TD></TR>"
        for row, (ra, dec) in enumerate(places)
    )
    (folder / "cat.vot").write_text(
        '<VOTABLE version="1.3" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE>'
        f'<COOSYS ID="B" system="eq_FK4" equinox="B1950"/><TABLE>{fields}<DATA><TABLEDATA>{rows}'
        "</TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>"
    )
    return folder / "cat.vot"


def _ldac(folder: Path) -> Path:
    """A table of header cards first, as SExtractor and KiDS write it."""
    cards = fits.BinTableHDU(Table({"Field Header Card": ["SIMPLE"]}), name="LDAC_IMHEAD")
    rows = fits.BinTableHDU(_plain(), name="LDAC_OBJECTS")
    fits.HDUList([fits.PrimaryHDU(), cards, rows]).writeto(folder / "cat.fits")
    return folder / "cat.fits"


def _sexagesimal() -> Table:
    sky = SkyCoord(RA, DEC, unit="deg")
    table = _plain()
    table["ra"] = sky.ra.to_string(unit="hourangle", sep=":", precision=6)
    table["dec"] = sky.dec.to_string(sep=":", precision=6, alwayssign=True)
    return table


def _hours(unit: str) -> Table:
    table = _plain()
    table["ra"] = RA / 15 * units.Unit(unit)
    return table


def _parquet(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet

    columns = {
        "id": pa.array([BIG + row for row in range(3)]),
        "ra": pa.array(RA).dictionary_encode(), "dec": pa.array(DEC, pa.float64()),
        "field": pa.array([b"a", b"b", None]), "nested": pa.array([[1], [2, 3], []]),
    }  # fmt: skip
    pyarrow.parquet.write_table(pa.table(columns), folder / "cat.parquet")
    return folder / "cat.parquet"


_ROWS = "\n".join(f"{BIG + i};{RA[i]!r};{DEC[i]!r}" for i in range(3)).replace("np.float64", "")
_ROWS = _ROWS.replace("(", "").replace(")", "")
_READ: dict[str, Make] = {
    "FITS": lambda folder: _written(folder / "cat.fits", _plain()),
    "FITS in radians and arcmin": lambda folder: _written(folder / "cat.fits", _with_units()),
    "FITS in hours of time": lambda folder: _written(folder / "cat.fits", _hours("h")),
    "ECSV with masked values": lambda folder: _written(folder / "cat.ecsv", _with_units()),
    "ECSV with coordinates": lambda folder: _written(
        folder / "cat.ecsv",
        Table({"id": BIG + np.arange(3), "sky_coord": SkyCoord(RA, DEC, unit="deg").galactic}),
    ),
    "VOTable of sexagesimal texts": lambda folder: _written(
        folder / "cat.vot", _sexagesimal(), "votable"
    ),
    "VOTable in radians": lambda folder: _written(folder / "cat.vot", _with_units(), "votable"),
    "CSV": _text("cat.csv", f"id,ra,dec\n{_ROWS.replace(';', ',')}\n"),
    "CSV with a BOM and ;": _text("cat.csv", f"id;ra;dec\r\n{_ROWS}\r\n", "utf-8-sig"),
    "CSV with remarks": _text("cat.csv", f"# made by hand\n#\nid;ra;dec\n{_ROWS}\n\n"),
    "CSV whose names are a remark": _text("cat.csv", f"# made\n#id;ra;dec\n{_ROWS}\n"),
    "FITS of B1950": _old_fits,
    "VOTable of B1950": _old_votable,
    "units in capitals": _capitals,
    "several tables": _ldac,
    "degrees with colons": lambda folder: _written(folder / "cat.fits", _colons()),
    "CSV with lines in a text": _text(
        "cat.csv", 'id;ra;dec;"a\nb"\n' + _ROWS.replace("\n", ';"x\ny"\n')
    ),
    "Parquet with dictionaries": _parquet,
}


@pytest.mark.parametrize("form", _READ)
def test_positions_and_ids(tmp_path: Path, form: str) -> None:
    table = table_with_positions(_READ[form](tmp_path))
    ra, dec = read_positions(table)
    np.testing.assert_allclose(ra, RA, atol=1e-8)
    np.testing.assert_allclose(dec, DEC, atol=1e-8)
    assert table.typed("id") == [BIG + row for row in range(3)]


def test_values_that_are_missing_and_bytes(tmp_path: Path) -> None:
    assert read_table(_READ["ECSV with masked values"](tmp_path)).typed("z") == [0.1, None, 0.3]
    assert read_table(_parquet(tmp_path)).typed("field") == ["a", "b", None]


def test_texts_that_only_look_like_numbers_stay_texts(tmp_path: Path) -> None:
    lines = ["1_2,007,NULL,1.50,nan", "1_3,008,4,-2,nan"]
    (tmp_path / "cat.csv").write_text("patch,tile,z,mag,none\n" + "\n".join(lines))
    table = read_table(tmp_path / "cat.csv")
    assert table.typed("patch") == ["1_2", "1_3"]
    assert table.typed("tile") == ["007", "008"]
    assert table.typed("z") == [None, 4]
    assert table.typed("mag") == [1.5, -2.0]
    assert table.typed("none") == [None, None]


def test_of_several_tables_with_positions_one_is_named(tmp_path: Path) -> None:
    hdus = [fits.BinTableHDU(_plain(), name=name) for name in ("STARS", "GALAXIES")]
    path = tmp_path / "cat.fits"
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    with pytest.raises(ConfigurationError, match=r"several tables with positions .*\[1\]$"):
        table_with_positions(path)
    assert len(table_with_positions(path, "GALAXIES")["ra"]) == 3


def test_a_position_that_is_null_is_none(tmp_path: Path) -> None:
    (tmp_path / "cat.csv").write_text("ra,dec\n150.1,2\nNULL,null\n10:00:24,--\n")
    ra, dec = read_positions(read_table(tmp_path / "cat.csv"))
    assert np.isfinite(ra).tolist() == np.isfinite(dec).tolist() == [True, False, False]


_REFUSED: dict[str, tuple[Make, str]] = {
    "a comma in a text": (
        _text("cat.csv", "id,ra,dec\nM 31, big,10.7,41.3\n"), "row 1 has 4 values"
    ),
    "a column twice": (_text("cat.csv", "id,ra,dec,ra\n1,2,3,4\n"), "several columns 'ra'"),
    "no CSV at all": (_text("cat.csv", " \n"), "is empty"),
    "no angle": (_text("cat.csv", "id,ra,dec\n1,x,2\n"), "'x' in row 0 of 'ra' is no angle"),
    "a unit of another kind": (
        lambda folder: _written(folder / "cat.fits", Table({"ra": RA * units.m, "dec": DEC})),
        "the unit 'm' of 'ra' is no angle",
    ),
    "decimal commas": (_text("cat.csv", "ra;dec\n150,1;2,5\n"), "is no angle"),
    "Latin letters": (_text("cat.csv", "naïve,ra,dec\n", "latin-1"), "is no UTF-8: save it"),
    "no header": (_text("cat.csv", "150.1,2.5\n150.2,2.6\n"), "no names of its columns"),
    "several values a row": (_parquet, "several values a row"),
    "a folder": (lambda folder: folder, "no HATS catalogue"),
}  # fmt: skip


@pytest.mark.parametrize("case", _REFUSED)
def test_what_has_no_one_meaning_is_refused(tmp_path: Path, case: str) -> None:
    make, message = _REFUSED[case]
    path = make(tmp_path)
    with pytest.raises((InputError, ConfigurationError)) as raised:
        _rows_of(path, "nested" if case == "several values a row" else None)
    assert message in raised.value.message


def _rows_of(path: Path, column: str | None) -> Any:
    table = read_table(path)
    return read_positions(table) if column is None else table.typed(column)


def test_hats_catalogues(tmp_path: Path) -> None:
    pytest.importorskip("hats")
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 40), rng.uniform(-80, 80, 40)
    columns = {"id": BIG + np.arange(40), "source_ra": ra, "source_dec": dec, "z": ra / 400}
    columns["z"][3] = np.nan
    folder = tmp_path / "survey"
    folder.mkdir()
    rows = write_hats(folder, columns, ("source_ra", "source_dec"), 1)
    table = read_table(folder)
    found = read_positions(table)
    ids = table.typed("id")
    assert sorted(ids) == [BIG + row for row in range(40)]  # each once, thumbnail or not
    at = [value - BIG for value in ids]
    np.testing.assert_allclose(found, [ra[at], dec[at]])
    assert table.typed("z")[at.index(3)] is None
    assert ids == rows["id"].tolist()


def test_hats_is_asked_for_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hats.properties").write_text("obs_collection=x\n")
    real = builtins.__import__

    def without(name: str, *given: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "hats":
            raise ModuleNotFoundError(name)
        return real(name, *given, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=r"vim-embed\[hats\]"):
        read_table(tmp_path)


def test_the_thumbnail_of_a_hats_catalogue_gives_no_rows(tmp_path: Path) -> None:
    for name in ("Npix=1.parquet", "data_thumbnail.parquet"):
        (tmp_path / name).write_bytes(b"")
    told: list[Skipped] = []
    found = find_files([str(tmp_path)], _why_not, pass_over=told.append)
    assert [Path(one).name for one in found] == ["Npix=1.parquet"]
    assert "HATS" in told[0].reason


@pytest.mark.parametrize(("unit", "factor"), [("hourangle", 1 / 15), ("rad", np.pi / 180)])
def test_units_that_are_not_told_are_asked_for(tmp_path: Path, unit: str, factor: float) -> None:
    wcs = tangent(20, 2, 0.2, (120, 120))
    galaxies = around(20, 2, 6, 4)
    write(tmp_path / "tile.fits", painted(galaxies, wcs, (120, 120), noise=0.01), wcs)
    dec = galaxies.dec * (factor if unit == "rad" else 1)
    path = _written(tmp_path / "cat.csv", Table({"ra": galaxies.ra * factor, "dec": dec}), "csv")

    def cut(position: tuple[str, str] | None) -> list[Any]:
        sky = SkyOptions(images=(str(tmp_path / "tile.fits"),), size=3, position=position)
        return list(CatalogueReader(str(path), ReadOptions(sky=sky)).read(0))

    with pytest.raises(InputError, match=rf"ra\[{unit}\]"):
        cut(None)
    rows = cut((f"ra[{unit}]", "dec[rad]" if unit == "rad" else "dec[deg]"))
    assert [isinstance(row, Item) for row in rows] == [True] * 4
    np.testing.assert_allclose([row.columns["ra"] for row in rows], galaxies.ra)
