"""Catalogues in every format that astronomers have them in, written by the real libraries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units
from astropy.io import fits
from astropy.io.votable.tree import TableElement, VOTableFile
from astropy.table import MaskedColumn, Table

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.figures.columns import read_column
from vim_embed_client.scoring.embedding_files import EmbeddingFile

NAMES = ["s3", "s1", "s2"]
Z = [0.3, 0.1, 0.2]
FILE = EmbeddingFile(
    label="a.npy", embeddings=np.eye(3), ids=["q/s1.fits", "q/s2.fits", "q/s4.fits"]
)


def catalogue() -> Table:
    table = Table({"id": NAMES, "z": Z, "kind": ["spiral", "", "disc"]})
    table["mass"] = MaskedColumn([1.5, 2.5, 3.5], mask=[False, True, False], unit=units.Msun)
    table["flux"] = [[1.0, 2.0]] * 3
    return table


def text(separator: str, remarks: str = "", names: str = "id,z") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        lines = [names] + [f"{name},{z}" for name, z in zip(NAMES, Z, strict=True)]
        path.write_text(remarks + "\n".join(lines).replace(",", separator) + "\n")

    return write


def astropy(kind: str, **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        table = catalogue()
        if kind == "votable":
            del table["flux"]
        table.write(path, format=kind, **options)

    return write


def parquet(path: Path) -> None:
    pq.write_table(pa.table({"id": [name.encode() for name in NAMES], "z": Z}), path)


def second_extension(path: Path) -> None:
    other = fits.BinTableHDU(Table({"id": NAMES, "ra": Z}), name="SKY")
    image = fits.CompImageHDU(np.zeros((20, 20), np.float32), name="SCI")
    table = fits.BinTableHDU(catalogue(), name="CAT")
    fits.HDUList([fits.PrimaryHDU(), image, other, table]).writeto(path)


def two_alike(path: Path) -> None:
    first = fits.BinTableHDU(Table({"id": NAMES, "z": [9.0, 9.0, 9.0]}), name="OLD")
    fits.HDUList([fits.PrimaryHDU(), first, fits.BinTableHDU(catalogue(), name="NEW")]).writeto(
        path
    )


def two_votables(path: Path) -> None:
    file = VOTableFile.from_table(catalogue()["id", "z"])
    other = VOTableFile.from_table(Table({"ra": Z}))
    element: TableElement = other.get_first_table()
    file.resources[0].tables.insert(0, element)
    file.to_xml(str(path))


READ: list[tuple[str, Callable[[Path], None], str]] = [
    ("c.csv", text(","), ":z"),
    ("c.csv", text(";"), ":z"),
    ("c.tsv", text("\t"), ":z"),
    ("c.csv", text(",", remarks="#Table1\n# a remark\n"), ":z"),
    ("c.csv", text(",", names="ID,Z"), ":z"),
    ("c.parquet", parquet, ":z"),
    ("c.ecsv", astropy("ascii.ecsv"), ":z"),
    ("c.vot", astropy("votable"), ":z"),
    ("c.xml", astropy("votable"), ":z"),
    ("c.vot", two_votables, ":z"),
    ("c.fits", astropy("fits"), ":z"),
    ("c.fits", astropy("fits"), ":Z"),
    ("c.FIT", astropy("fits"), ":z"),
    ("c.fits.gz", astropy("fits"), ":z"),
    ("c.fits", second_extension, ":z"),
    ("c.fits", two_alike, "[NEW]:z"),
    ("c.fits", two_alike, "[2]:z"),
    ("with:colon.fits", astropy("fits"), ":z"),
]


@pytest.mark.parametrize(("name", "write", "column"), READ)
def test_a_catalogue_is_joined_by_id(
    tmp_path: Path, name: str, write: Callable[[Path], None], column: str
) -> None:
    write(tmp_path / name)
    found = read_column(f"{tmp_path / name}{column}", FILE)
    assert found.kind == "continuous"
    np.testing.assert_array_equal(found.values, [0.1, 0.2, np.nan])


def test_ids_in_another_column_are_not_passed_by(tmp_path: Path) -> None:
    """Row by row, values in another order would be those of other galaxies."""
    mine = [name for name in FILE.ids or []][::-1]
    Table({"Name": mine, "z": [0.3, 0.2, 0.1]}).write(tmp_path / "c.csv")
    with pytest.raises(InputError, match=r"in its column 'Name': give --id-column Name"):
        read_column(f"{tmp_path}/c.csv:z", FILE)
    found = read_column(f"{tmp_path}/c.csv:z", FILE, id_column="Name")
    assert (found.values.tolist(), found.joined) == ([0.1, 0.2, 0.3], "by its column Name")
    Table({"kind": ["a", "b", "c"], "z": [0.3, 0.2, 0.1]}).write(tmp_path / "d.csv")
    found = read_column(f"{tmp_path}/d.csv:z", FILE)
    assert (found.values.tolist(), found.joined) == ([0.3, 0.2, 0.1], "row by row")


@pytest.mark.parametrize("ending", ["ecsv", "fits", "vot"])
def test_masked_numbers_and_texts(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"c.{ending}"
    astropy({"ecsv": "ascii.ecsv", "vot": "votable", "fits": "fits"}[ending])(path)
    np.testing.assert_array_equal(read_column(f"{path}:mass", FILE).values, [np.nan, 3.5, np.nan])
    kinds = read_column(f"{path}:kind", FILE)
    assert (kinds.kind, kinds.values.tolist()) == ("categorical", ["", "disc", ""])


def broken(path: Path) -> None:
    path.write_bytes(b"SIMPLE  = nonsense")


def latin(path: Path) -> None:
    path.write_bytes("id,z\nä,1\n".encode("latin-1"))


def repeats(path: Path) -> None:
    path.write_text("id,z\ns1,1\ns2,1\ns1,2\n")


REFUSED: list[tuple[str, Callable[[Path], None], str, str]] = [
    ("c.fits", astropy("fits"), ":q", "no column 'q', but id, z, kind, mass, flux"),
    ("c.fits", astropy("fits"), ":flux", r"'flux' has \(2,\) values a row"),
    ("c.fits", astropy("fits"), "", "lacks the column: give"),
    ("c.fits", two_alike, ":z", r"several tables with 'z' .*name one, as in .*c.fits\[1\]:z"),
    ("c.fits", two_alike, "[X]:z", r"no table \[X\], but \[1\] OLD, \[2\] NEW"),
    ("c.csv", text(","), "[1]:z", r"is one table: leave out \[1\]"),
    ("c.fits", lambda path: fits.PrimaryHDU(np.eye(3)).writeto(path), ":z", "has no table"),
    ("c.fits", broken, ":z", "cannot be read as a table"),
    ("c.vot", broken, ":z", "cannot be read as a table"),
    ("c.csv", latin, ":z", "no UTF-8: save it as such"),
    ("c.csv", lambda path: path.touch(), ":z", "is empty"),
    ("c.csv", repeats, ":z", r"the id s1 stands for several rows \(0, 2\)"),
    ("c.csv", lambda path: None, ":z", "c.csv is not there"),
]


@pytest.mark.parametrize(("name", "write", "column", "message"), REFUSED)
def test_a_catalogue_that_cannot_be_used_names_the_fix(
    tmp_path: Path, name: str, write: Callable[[Path], None], column: str, message: str
) -> None:
    write(tmp_path / name)
    with pytest.raises((ConfigurationError, InputError), match=message):
        read_column(f"{tmp_path / name}{column}", FILE)
