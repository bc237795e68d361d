"""Catalogues as archives and tools write them: the same three sources in each layout."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.io.votable import from_table
from astropy.table import Column, MaskedColumn, Table

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.packing import PACKED
from vim_embed_client.sky.positions import read_positions, table_with_positions
from vim_embed_client.sky.table_formats import ENDINGS
from vim_embed_client.sky.tables import read_table, split_table_name

IDS = [4611686018427387905, 4611686018427387906, 4611686018427387907]  # no float64 holds them
RA, DEC = [150.1191667, 150.25, 10.6845], [2.2058333, -0.5041667, 41.269]
Z = [0.125, None, 0.5]
Make = Callable[[Path], Path]


def _text(name: str, text: str) -> Make:
    def make(folder: Path) -> Path:
        data = text.encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return folder / name

    return make


_VIZIER = """#
#   VizieR Astronomical Server vizier.cds.unistra.fr
#    Date: 2026-11-02T09:15:03 [V1.99+ (14-Oct-2013)]
#   In case of problem, please report to:\tcds-question@unistra.fr
#
#
#Coosys\tJ2000:\teq_FK5 J2000
#INFO\tvotable-version=1.99+ (14-Oct-2013)\t
#-oc.form=dec
#

#RESOURCE=yCat_1355
#Name: I/355
#Title: Gaia DR3 Part 1. Main source (Gaia Collaboration, 2022)
#Table\tI_355_gaiadr3:
#Name: I/355/gaiadr3
#Title: Gaia data release 3
#Column\tRA_ICRS\t(F15.11)\tRight ascension\t[ucd=pos.eq.ra;meta.main]
#Column\tDE_ICRS\t(F15.11)\tDeclination\t[ucd=pos.eq.dec;meta.main]
#Column\tSource\t(I19)\tUnique source identifier\t[ucd=meta.id;meta.main]
#Column\tz\t(F6.3)\t? Redshift\t[ucd=src.redshift]
"""
_VIZIER_ROWS = (
    "RA_ICRS\tDE_ICRS\tSource\tz\n"
    "deg\tdeg\t \t \n"
    "---------------\t---------------\t-------------------\t-----\n"
    "150.11916670000\t 02.20583330000\t4611686018427387905\t0.125\n"
    "150.25000000000\t-00.50416670000\t4611686018427387906\t     \n"
    "010.68450000000\t+41.26900000000\t4611686018427387907\t0.500\n"
)
_VIZIER_SEXA = (
    "_RAJ2000\t_DEJ2000\tSource\tz\n"
    '"h:m:s"\t"d:m:s"\t \t \n'
    "-------------\t-------------\t-------------------\t-----\n"
    "10 00 28.6000\t+02 12 21.000\t4611686018427387905\t0.125\n"
    "10 01 00.0000\t-00 30 15.000\t4611686018427387906\t     \n"
    "00 42 44.2800\t+41 16 08.400\t4611686018427387907\t0.500\n"
)

_SEXTRACTOR = """#   1 NUMBER                 Running object number
#   2 FLUX_APER              Flux vector within fixed circular aperture(s)     [count]
#   5 ALPHA_J2000            Right ascension of barycenter (J2000)             [deg]
#   6 DELTA_J2000            Declination of barycenter (J2000)                 [deg]
#   7 Z                      Redshift
#   8 FLAGS                  Extraction flags
 4611686018427387905    103.5    110.2   1.2e+02 150.1191667 +2.2058333 0.125   0
 4611686018427387906     -3.5     10.2  -1.2e+02 150.2500000 -0.5041667   nan  16
 4611686018427387907    203.5    210.2   3.2e+02  10.6845000 +41.2690000 0.500   3
"""

_HST = """# id x y ra dec faper_F160W z star_flag
# Default aperture is 0.7 arcsec
4611686018427387905  1834.2  112.9 150.1191667  2.2058333  1.2e+01   0.125 0
4611686018427387906  1834.2  112.9 150.2500000 -0.5041667 -1.2e+01     nan 1

4611686018427387907  1834.2  112.9  10.6845000 41.2690000  3.2e+01   0.500 0
"""

_IPAC = r"""\catalog = 'AllWISE'
\ a remark
|designation         |cntr                 |ra          |dec        |z      |
|char                |long                 |double      |double     |double |
|                    |                     |deg         |deg        |       |
|null                |null                 |null        |null       |null   |
 J100028.60+021221.0  4611686018427387905   150.1191667   2.2058333  0.125
 J100100.00-003015.0  4611686018427387906   150.2500000  -0.5041667   null
 J004244.28+411608.4  4611686018427387907    10.6845000  41.2690000  0.500
"""

_BYTES = """--------------------------------------------------------------------------------
   Bytes Format Units  Label Explanations
--------------------------------------------------------------------------------
   1- 19 I19    ---    ID    Identifier
  21- 22 I2     h      RAh   Hour of Right Ascension (J2000)
  24- 25 I2     min    RAm   Minute of Right Ascension (J2000)
  27- 31 F5.2   s      RAs   Second of Right Ascension (J2000)
      33 A1     ---    DE-   Sign of the Declination (J2000)
  34- 35 I2     deg    DEd   Degree of Declination (J2000)
  37- 38 I2     arcmin DEm   Arcminute of Declination (J2000)
  40- 44 F5.2   arcsec DEs   Arcsecond of Declination (J2000)
  46- 50 F5.3   ---    z     ? Redshift
--------------------------------------------------------------------------------
"""
_CDS_ROWS = """4611686018427387905 10 00 28.60 +02 12 21.00 0.125
4611686018427387906 10 01 00.00 -00 30 15.00
4611686018427387907 00 42 44.28 +41 16 08.40 0.500
"""
_MRT = (
    "Title: A survey of three galaxies\nAuthors: Somebody A.\nTable: The galaxies\n"
    "================================================================================\n"
    f"Byte-by-byte Description of file: apjs1234t2_mrt.txt\n{_BYTES}{_CDS_ROWS}"
)


def _with_readme(name: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / "ReadMe").write_text(
            "J/ApJS/999/1   Three galaxies   (Somebody+, 2026)\n"
            f"Byte-by-byte Description of file: table1.dat\n{_BYTES}"
        )
        return _text(name, _CDS_ROWS)(folder)

    return make


def _specobj(folder: Path) -> Path:
    """SDSS: ids are texts of a fixed width, filled with spaces from the left."""
    columns = [
        fits.Column("SURVEY", "6A", array=["sdss", "boss", "eboss"]),
        fits.Column("SPECOBJID", "22A", array=[str(one).rjust(22) for one in IDS]),
        fits.Column("ID", "K", array=IDS),
        fits.Column("Z", "E", array=[0.125, np.nan, 0.5]),
        fits.Column("SPECPRIMARY", "L", array=[True, False, True]),
        fits.Column("MODELFLUX", "5E", array=np.zeros((3, 5))),
        fits.Column("PLUG_RA", "D", array=RA), fits.Column("PLUG_DEC", "D", array=DEC),
    ]  # fmt: skip
    path = folder / "specObj-dr17.fits.gz"
    fits.BinTableHDU.from_columns(columns).writeto(path)
    return path


def _masked() -> Table:
    table = Table({"ID": IDS, "ALPHA_J2000": RA * units.deg, "DELTA_J2000": DEC * units.deg})
    table["lp_zBEST"] = MaskedColumn(np.array([0.125, -99, 0.5], "f4"), mask=[0, 1, 0])
    table["lp_type"] = MaskedColumn([0, 1, 2], mask=[False, False, True])
    table["FLAG"] = [True, False, True]
    table.rename_column("lp_zBEST", "z")
    return table


def _cosmos(folder: Path) -> Path:
    _masked().write(folder / "COSMOS2020_CLASSIC_R1_v2.0.fits")
    return folder / "COSMOS2020_CLASSIC_R1_v2.0.fits"


def _ldac(folder: Path) -> Path:
    """The FITS that SExtractor calls FITS_LDAC, and names .cat as its text."""
    cards = fits.BinTableHDU(Table({"Field Header Card": ["SIMPLE"]}), name="LDAC_IMHEAD")
    rows = fits.BinTableHDU(_masked(), name="LDAC_OBJECTS")
    fits.HDUList([fits.PrimaryHDU(), cards, rows]).writeto(folder / "field.fits")
    return (folder / "field.fits").rename(folder / "field.cat")


def _topcat(form: str, name: str) -> Make:
    """Names of nobody's list, which the UCDs explain; integers, bools and texts with gaps."""

    def make(folder: Path) -> Path:
        table = _masked()
        table.rename_columns(["ALPHA_J2000", "DELTA_J2000"], ["lon_ep", "lat_ep"])
        table["name"] = Column(["α Cet", "", "M31"], dtype="U8")
        file = from_table(table)
        for field in file.get_first_table().fields:
            ucds = {"lon_ep": "pos.eq.ra;meta.main", "lat_ep": "pos.eq.dec;meta.main"}
            field.ucd = ucds.get(field.name)
        written = io.BytesIO()
        file.to_xml(written, tabledata_format=form)
        data = written.getvalue()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return folder / name

    return make


def _gaia(folder: Path) -> Path:
    """Gaia's archive: ECSV by its header, `null` for what is missing, and a name of CSV."""
    head = (
        "# %ECSV 1.0\n# ---\n# delimiter: ','\n# datatype:\n"
        "# - {name: source_id, datatype: int64, description: Unique source identifier}\n"
        "# - {name: ra, unit: deg, datatype: float64}\n"
        "# - {name: dec, unit: deg, datatype: float64}\n"
        "# - {name: z, datatype: float64}\n# - {name: rv_template, datatype: int32}\n"
        "source_id,ra,dec,z,rv_template\n"
    )
    values = zip(IDS, RA, DEC, ["0.125", "null", "0.5"], ["1", "null", "3"], strict=True)
    rows = "".join(",".join(map(str, row)) + "\n" for row in values)
    return _text("GaiaSource_000000-003111.csv.gz", head + rows)(folder)


_PLAIN = "".join(
    f"{i} {ra!r} {dec!r} {'nan' if z is None else z}\n"
    for i, ra, dec, z in zip(IDS, RA, DEC, Z, strict=True)
)
_NAMES = {"Source": ("source_id", "Source", "NUMBER", "cntr", "ID", "id")}
_LAYOUTS: dict[str, Make] = {
    "Gaia's archive": _gaia,
    "SDSS specObj": _specobj,
    "COSMOS2020": _cosmos,
    "SExtractor": _text("field.cat", _SEXTRACTOR),
    "SExtractor's FITS_LDAC": _ldac,
    "3D-HST": _text("cosmos_3dhst.v4.1.dat", _HST),
    "3D-HST packed": _text("cosmos_3dhst.v4.1.cat.gz", _HST),
    "VizieR": _text("asu.tsv", _VIZIER + _VIZIER_ROWS),
    "VizieR, sexagesimal": _text("asu.tsv", _VIZIER + _VIZIER_SEXA),
    "VizieR with bars": _text("asu.txt", _VIZIER + _VIZIER_ROWS.replace("\t", "|")),
    "VizieR with semicolons": _text("asu.tsv.gz", _VIZIER + _VIZIER_ROWS.replace("\t", ";")),
    "TOPCAT's VOTable": _topcat("binary2", "topcat.vot"),
    "TOPCAT's VOTable of text": _topcat("tabledata", "topcat.xml.gz"),
    "IPAC": _text("wise.tbl", _IPAC),
    "IPAC by another name": _text("wise.txt", _IPAC),
    "a journal's machine-readable table": _text("apjs1234t2_mrt.txt", _MRT),
    "CDS with its ReadMe": _with_readme("table1.dat"),
    "CDS packed": _with_readme("table1.dat.gz"),
    "numpy.savetxt": _text("cat.txt", "# made by hand\n# id ra dec z\n" + _PLAIN),
    "TOPCAT's ASCII": _text("cat.txt", "# id   ra   dec   z\n" + _PLAIN.replace("nan", '""')),
    "units below the names": _text("cat.dat", "# id ra dec z\n# - deg deg -\n" + _PLAIN),
    "a first line of names": _text("cat.txt", "id ra dec z\n" + _PLAIN),
    "aligned by tabs": _text("cat.dat", "id\t\tra\tdec z\n" + _PLAIN.replace(" ", "\t \t")),
    "of Windows": _text("cat.txt", ("id ra dec z\n" + _PLAIN).replace("\n", "\r\n")),
    "units in the names": _text(
        "cat.txt", "id, RA (deg), Dec (deg), z\n" + _PLAIN.replace(" ", ",")
    ),
    "a database's table": _text(
        "cat.txt", "id | ra | dec | z\n----+-----+-----+---\n" + _PLAIN.replace(" ", " | ")
    ),
    "bars at both ends": _text(
        "cat.txt",
        "| id | ra | dec | z |\n|---|---|---|---|\n"
        + "".join(f"| {line} |\n" for line in _PLAIN.replace(" ", " | ").splitlines()),
    ),
    "CSV packed": _text("cat.csv.gz", "id,ra,dec,z\n" + _PLAIN.replace(" ", ",")),
    "UTF-16": lambda folder: _utf_16(folder / "cat.txt"),
}  # fmt: skip


def _utf_16(path: Path) -> Path:
    """As Excel saves Unicode text."""
    path.write_bytes(("id\tra\tdec\tz\r\n" + _PLAIN.replace(" ", "\t")).encode("utf-16"))
    return path


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_the_same_sources(tmp_path: Path, layout: str) -> None:
    table = table_with_positions(_LAYOUTS[layout](tmp_path))
    ra, dec = read_positions(table)
    np.testing.assert_allclose(ra, RA, atol=1e-7)
    np.testing.assert_allclose(dec, DEC, atol=1e-7)
    ids = next(name for name in _NAMES["Source"] if table.find(name))
    assert table.typed(ids) == IDS
    assert table.typed("z") == Z


def test_a_vector_of_sextractor_has_a_column_for_each_place(tmp_path: Path) -> None:
    table = read_table(_LAYOUTS["SExtractor"](tmp_path))
    assert table.names[1:4] == ["FLUX_APER", "FLUX_APER_1", "FLUX_APER_2"]
    assert table.unit("FLUX_APER_2") == "ct"
    assert table.typed("FLUX_APER_1") == [110.2, 10.2, 210.2]
    assert table.typed("FLAGS") == [0, 16, 3]


@pytest.mark.parametrize("layout", ["COSMOS2020", "TOPCAT's VOTable"])
def test_masked_values_of_each_kind(tmp_path: Path, layout: str) -> None:
    table = read_table(_LAYOUTS[layout](tmp_path))
    assert table.typed("lp_type") == [0, 1, None]
    assert table.typed("FLAG") == [True, False, True]


def test_texts_of_a_votable_and_of_sdss(tmp_path: Path) -> None:
    assert read_table(_LAYOUTS["TOPCAT's VOTable"](tmp_path)).typed("name")[0] == "α Cet"
    assert read_table(_specobj(tmp_path)).typed("SPECOBJID") == IDS


def test_several_tables_of_vizier(tmp_path: Path) -> None:
    other = (
        "\n\n#Table\tI_355_paramp:\n#Name: I/355/paramp\nSource\tTeff\n \tK\n----\t----\n1\t5000\n"
    )
    path = _text("asu.tsv", _VIZIER + _VIZIER_ROWS + other)(tmp_path)
    assert len(table_with_positions(path)["Source"]) == 3
    assert read_table(path, "I/355/paramp").typed("Teff") == [5000]
    assert read_table(path, column="Teff").unit("Teff") == "K"


def test_old_equinoxes_are_told(tmp_path: Path) -> None:
    path = _text("old_mrt.txt", _MRT.replace("J2000", "B1950"))(tmp_path)
    ra, _ = read_positions(table_with_positions(path))
    assert np.all(np.abs(ra - RA) > 0.5)
    coosys = _VIZIER.replace("J2000:\teq_FK5 J2000", "B1950:\teq_FK4 B1950")
    rows = _VIZIER_ROWS.replace("RA_ICRS\tDE_ICRS", "RAdeg\tDEdeg")
    ra, _ = read_positions(table_with_positions(_text("a.tsv", coosys + rows)(tmp_path)))
    assert np.all(np.abs(ra - RA) > 0.5)


@pytest.mark.parametrize("ending", ENDINGS)
def test_each_ending_is_a_table_packed_or_not(ending: str) -> None:
    for name in (f"cat{ending}", f"CAT{ending.upper()}", *(f"cat{ending}{end}" for end in PACKED)):
        named = split_table_name(f"{name}[1]:z")
        assert named is not None
        assert (str(named.path), named.part, named.column) == (name, "1", "z")


@pytest.mark.parametrize("kind", ["fits", "ecsv", "votable", "parquet", "csv"])
def test_packed_files_are_those_that_they_pack(tmp_path: Path, kind: str) -> None:
    ending = {"votable": "xml"}.get(kind, kind)
    plain = tmp_path / f"cat.{ending}"
    table = Table({"id": IDS, "ra": RA, "dec": DEC})
    if kind == "parquet":
        table.to_pandas().to_parquet(plain)
    else:
        table.write(plain, format=f"ascii.{kind}" if kind in ("csv", "ecsv") else kind)
    packed = tmp_path / f"cat.{ending}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for path in (plain, packed):
        assert read_table(path).typed("id") == IDS
        np.testing.assert_allclose(read_positions(read_table(path)), [RA, DEC])


_REFUSED = {
    "a value is blank": ("cat.txt", "id ra dec z\n1 150.1 2.2\n", "row 1 has 3 values"),
    "no names": ("cat.dat", _PLAIN, "has no names of its columns"),
    "no names, and texts": ("cat.dat", "M31 10.6845 41.269\n", "has no names of its columns"),
    "two lines of names": (
        "cat.cat", "# id ra dec z\n# a b c d\n" + _PLAIN, "several lines that may be the names"
    ),
    "a web page": ("cat.fits.csv", "<!DOCTYPE html>\n<html></html>", "is a web page"),
    "neither text nor a table": ("cat.txt", "\0\1\2\n", "is neither text nor FITS"),
    "nothing": ("cat.tbl", "", "is empty"),
    "remarks alone": ("cat.txt", "# id ra dec\n", "is empty"),
    "a damaged FITS file": ("cat.fits", "no FITS\n", "cannot be read as a table"),
    "a part of one table": ("cat.txt[1]", "id ra dec\n1 150.1 2.2\n", r"leave out [1]"),
}  # fmt: skip


@pytest.mark.parametrize("case", _REFUSED)
def test_what_cannot_be_told_is_refused(tmp_path: Path, case: str) -> None:
    name, text, message = _REFUSED[case]
    named = split_table_name(str(tmp_path / name))
    assert named is not None
    named.path.write_text(text)
    with pytest.raises((InputError, ConfigurationError)) as raised:
        read_table(named.path, named.part)
    assert message in raised.value.message
