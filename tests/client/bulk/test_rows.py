"""Every row is what it says it is: files that real people have, and what must come of them.

A case is a line of CASES: how the file is written, the options, and the rows (an id and what the
model must see) and entries that must come. Expected pixels are made from the very arrays that
were written, or from what astropy reads back, by numpy and `to_rgb` alone.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.bulk.sources.reader import Item, Skipped
from vim_embed_client.bulk.sources.registry import find_sources, open_reader
from vim_embed_client.errors import InputError
from vim_embed_pixels.fits import ALL_HDUS
from vim_embed_pixels.stretch import Stretch, to_rgb

from .row_files import (
    FEATURE,
    FLUXES,
    HSC,
    PIXELS,
    PNGS,
    SKY,
    G,
    R,
    Z,
    catalogue,
    colour,
    entries_of,
    grey,
    hdus,
    image,
    npy,
    npz,
    primary,
    table,
    tar,
    up,
    write,
)
from .survey import Array


def views(values: list[bytes]) -> dict[str, bytes]:
    """A file with a column of binary views; none from an older pyarrow, which cannot write them."""
    try:
        return {"binary": table(x=pa.array(values, pa.binary_view()))}
    except pa.ArrowNotImplementedError:
        return {}


Rows = Sequence[tuple[str, Array | bytes]]


@dataclass(frozen=True)
class Case:
    """files: by name, below one folder. rows: id below that folder, and what the model sees.

    skipped and passed: parts of `id: reason` of every entry that is left out, as a fault or not.
    """

    files: Mapping[str, bytes]
    rows: Rows = ()
    skipped: Sequence[str] = ()
    passed: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def one(name: str, content: bytes, rows: Rows = (), **more: Any) -> Case:
    return Case({name: content}, rows, **more)


THREE = hdus(image(G, "N1"), image(R, "N2"), image(Z, "N2"))
SCI = hdus(image(G, "DQ"), image(R, "ERR"), image(Z, "SCI"), catalogue())
LUMINOSITY = SKY[0].astype(np.float64) * 1e40
OFFSET = 1e9 + np.arange(256.0).reshape(16, 16)
CASES: dict[str, Case] = {
    # Several images in a FITS file.
    "three images: one, and what was passed over": one(
        "a.fits", THREE, [("a.fits", up(grey(G)))],
        passed=["a.fits[N2,1]: a further image", "a.fits[3]: a further image"],
    ),
    "three images: all": one(
        "a.fits", THREE,
        [("a.fits[N1]", up(grey(G))), ("a.fits[N2,1]", up(grey(R))), ("a.fits[3]", up(grey(Z)))],
        options={"hdus": ALL_HDUS},
    ),
    "EXTVER tells names apart": one(
        "a.fits", hdus(image(G, "SCI"), image(R, "SCI", ver=2)),
        [("a.fits[SCI,1]", up(grey(G))), ("a.fits[SCI,2]", up(grey(R)))],
        options={"hdus": ALL_HDUS},
    ),
    "one by name and EXTVER": one(
        "a.fits", hdus(image(G, "SCI"), image(R, "SCI", ver=2)), [("a.fits", up(grey(R)))],
        options={"hdus": ("SCI:2",)},
    ),
    "SCI before DQ and ERR": one(
        "a.fits", SCI, [("a.fits", up(grey(Z)))],
        passed=["a.fits[DQ]: by its name a mask", "a.fits[ERR]: by its name a mask"],
    ),
    "a mask that is asked for": one(
        "a.fits", SCI, [("a.fits", up(grey(G)))], options={"hdus": ("DQ",)}
    ),
    "masks alone": one(
        "a.fits", hdus(image(G, "MASK"), image(R, "VAR_POISSON")),
        skipped=["a.fits: it holds no image: it has MASK (16×16 float32), VAR_POISSON"],
    ),
    "an HDU that is not there": one(
        "a.fits", SCI, skipped=["it has no HDU FLUX: it has 0 PRIMARY, 1 DQ, 2 ERR, 3 SCI, 4 CAT"],
        options={"hdus": ("FLUX",)},
    ),
    "a table by name": one(
        "a.fits", SCI, skipped=["its HDU CAT holds no image"], options={"hdus": ("CAT",)}
    ),
    "a catalogue": one("a.fits", hdus(catalogue()), passed=["it holds no image but tables (CAT)"]),
    "nothing": one("a.fits", hdus(), skipped=["it holds no image"]),
    "a spectrum": one(
        "a.fits", hdus(image(G[0], "SCI")), skipped=["it holds no image: it has SCI (16 float32)"]
    ),
    # Axes.
    "a cube of N galaxies": one(
        "a.fits", primary(SKY), [(f"a.fits#{i}", up(grey(SKY[i]))) for i in range(5)],
        options={"stack": True},
    ),
    "a cube that nobody explained": one(
        "a.fits", primary(SKY), skipped=["bands (--bands R,G,B) or galaxies (--stack)"]
    ),
    "three planes that nobody explained": one(
        "a.fits", primary(SKY[:3]), skipped=["three bands (--bands 0,1,2) or galaxies (--stack)"]
    ),
    "three galaxies": one(
        "a.fits", primary(SKY[:3]), [(f"a.fits#{i}", up(grey(SKY[i]))) for i in range(3)],
        options={"stack": True},
    ),
    "three bands by an option": one(
        "a.fits", primary(SKY[:3]), [("a.fits", up(colour(*SKY[:3])))],
        options={"stretch": Stretch(bands=(0, 1, 2))},
    ),
    "RGB by the header": one(
        "a.fits", primary(SKY[:3], CTYPE3="RGB"), [("a.fits", up(colour(*SKY[:3])))]
    ),
    "g, r, z by the header": one(
        "a.fits", primary(SKY[:3], BANDS="grz"), [("a.fits", up(colour(*SKY[2::-1])))]
    ),
    "spectral planes are no colours": one(
        "a.fits", primary(SKY[:3], CTYPE3="FREQ"), skipped=["(--stack)"]
    ),
    "a stack of cubes": one(
        "a.fits", primary(FLUXES),
        [(f"a.fits#{i}", up(to_rgb(FLUXES[i], HSC))) for i in range(2)], options={"stretch": HSC},
    ),
    "a zero-width image": one("a.fits", hdus(image(np.empty((4, 0), np.float32))), skipped=[
        "it holds no image: it has 1 (4×0 float32)"
    ]),
    "top-down rows": one("a.fits", primary(G, ROWORDER="TOP-DOWN"), [("a.fits", grey(G))]),
    "flipped": one("a.fits", primary(G), [("a.fits", grey(G))], options={"flip": True}),
    # Bands of one image.
    "three HDUs with a survey's limits": one(
        "a.fits", hdus(image(G, "G"), image(R, "R"), image(Z, "Z")),
        [("a.fits", up(to_rgb(np.stack([Z, R, G]), Stretch(limits=HSC.limits))))],
        options={"hdus": ("Z", "R", "G"), "stretch": HSC},
    ),
    "a file a band": Case(
        {"t/g.fits": primary(G), "t/R.fits": primary(R), "t/z.fits.gz": gzip.compress(primary(Z))},
        skipped=["t/{z,r,g}.fits: there is no file of band z", "t/{z,r,g}.fits.gz: there is no"],
        options={"join_bands": ("z", "r", "g")},
    ),
    "files joined by band": Case(
        {f"n1-{band}.fits": primary(flux) for band, flux in zip("grz", (G, R, Z), strict=True)},
        [("n1-{z,r,g}.fits", up(to_rgb(np.stack([Z, R, G]), Stretch(limits=HSC.limits))))],
        options={"join_bands": ("z", "r", "g"), "stretch": HSC},
    ),
    "joined by the folder, and one band missing": Case(
        {"g/1.fits": primary(G), "r/1.fits": primary(R), "z/1.fits": primary(Z),
         "g/2.fits": primary(G), "r/2.fits": primary(R), "other.fits": primary(Z),
         "colour.png": PNGS[0]},
        [("colour.png", PNGS[0]), ("{z,r,g}/1.fits", up(colour(Z, R, G)))],
        skipped=["{z,r,g}/2.fits: there is no file of band z, only of r, g", "other.fits: its"],
        options={"join_bands": ("z", "r", "g")},
    ),
    # Numbers.
    "luminosities beyond float32": one(
        "a.npy", npy(LUMINOSITY), [("a.npy", grey(SKY[0]))]
    ),
    "small differences on a large offset": one(
        "a.npy", npy(OFFSET), [("a.npy", grey(np.arange(256.0).reshape(16, 16)))]
    ),
    "an infinite range": one(
        "a.npy", npy(np.array([[-1.7e308, 1.7e308]] * 8)), skipped=["span an infinite range"]
    ),
    **{
        f"{what}, with {given}": one(
            "a.fits", primary(flux), skipped=[why],
            options={"stretch": Stretch(limits=((-1.0, 1.0),), blank=blank)},
        )
        for what, flux, given, blank, why in (
            ("all zero", np.zeros((8, 8), np.float32), "limits", None, "too flat to show"),
            ("constant", np.full((8, 8), 0.3, np.float32), "limits", None, "too flat to show"),
            ("all NaN", np.full((8, 8), np.nan, np.float32), "limits", None, "NaN or infinite"),
            ("all NaN", np.full((8, 8), np.nan, np.float32), "blank", 0.0, "NaN or infinite"),
            ("saturated", G + 100, "limits", None, "beyond the limits"),
        )
    },
    "unsigned 16-bit, scaled and blank": one(
        "a.fits",
        primary((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)),
        [("a.fits", up(grey((np.arange(64.0) * 1000).reshape(8, 8).astype(np.float32))))],
    ),
    # Arrays of fluxes.
    "fluxes in an array": one(
        "a.npy", npy(FLUXES), [(f"a.npy#{i}", to_rgb(FLUXES[i], HSC)) for i in range(2)],
        options={"stretch": HSC},
    ),
    "fluxes in an archive of arrays": one(
        "a.npz", npz(cube=FLUXES, labels=np.arange(2)),
        [(f"a.npz:cube#{i}", to_rgb(FLUXES[i], HSC)) for i in range(2)], options={"stretch": HSC},
    ),
    "three bands of fluxes": one(
        "a.npy", npy(SKY[:3]), [("a.npy", colour(*SKY[:3], how=Stretch(percentiles=(2, 98))))],
        options={"stretch": Stretch(bands=(0, 1, 2), percentiles=(2, 98))},
    ),
    "normalised pixels": one("a.npy", npy(SKY[None, :3]), [("a.npy#0", SKY[:3])]),
    "a stack of grey": one(
        "a.npy", npy(PIXELS[:, 0]),
        [(f"a.npy#{i}", np.stack([PIXELS[i, 0]] * 3)) for i in range(3)], options={"stack": True},
    ),
    "a stack of fluxes": one(
        "a.npy", npy(SKY), [(f"a.npy#{i}", grey(SKY[i])) for i in range(5)],
        options={"stack": True},
    ),
    "Fortran order": one(
        "a.npy", npy(np.asfortranarray(PIXELS)), [(f"a.npy#{i}", PIXELS[i]) for i in range(3)]
    ),
    "big-endian": one("a.npy", npy(SKY.astype(">f8")[0]), [("a.npy", grey(SKY[0]))]),
    "whole numbers that are no pixels": one(
        "a.npy", npy(PIXELS.astype(np.int32)), skipped=["int32 numbers are no pixels"]
    ),
    "records": one(
        "a.npy", npy(np.zeros(3, [("x", "f4", (2,))])), skipped=["it holds records"]
    ),
    "complex numbers": one("a.npy", npy(SKY[0] * 1j), skipped=["it holds complex"]),
    "masks beside the array": one(
        "a.npz", npz(image=PIXELS, mask=PIXELS[:, 0]),
        [(f"a.npz:image#{i}", PIXELS[i]) for i in range(3)],
        passed=["a.npz:mask: by its name it is a mask"],
    ),
    # Archives.
    "FITS and arrays in a tar": one(
        "a.tar",
        tar({"1.fits": primary(G), "2.fits.gz": gzip.compress(primary(R)), "3.npy": npy(PIXELS[:1]),
             "4.npz": npz(x=PIXELS[1:2]), "5.parquet": table(x=PNGS[:1]), "6.cls": b"1",
             "7_mask.fits": primary(Z), "8.asdf": b"#ASDF"}),
        [("a.tar/1.fits", up(grey(G))), ("a.tar/2.fits.gz", up(grey(R))),
         ("a.tar/3.npy#0", PIXELS[0]), ("a.tar/4.npz:x#0", PIXELS[1]),
         ("a.tar/5.parquet#0", PNGS[0])],
        passed=["a.tar/7_mask.fits: by its name a mask", "a.tar: members that are no images"],
    ),
    "links in a tar": one(
        "a.tar",
        tar({"1.png": PNGS[0], "hard.png": (tarfile.LNKTYPE, "1.png"),
             "x/soft.png": (tarfile.SYMTYPE, "../hard.png"), "gone.png": (tarfile.LNKTYPE, "0.png"),
             "round.png": (tarfile.SYMTYPE, "round.png")}),
        [("a.tar/1.png", PNGS[0]), ("a.tar/hard.png", PNGS[0]), ("a.tar/x/soft.png", PNGS[0])],
        skipped=["a.tar/gone.png: it is a link to 0.png", "a.tar/round.png: it is a link"],
    ),
    "links in a compressed tar": one(
        "a.tgz", tar({"1.png": PNGS[0], "2.png": (tarfile.LNKTYPE, "1.png")}, "w:gz"),
        [("a.tgz/1.png", PNGS[0]), ("a.tgz/2.png", PNGS[0])],
    ),
    "two members of a name": one(
        "a.tar", tar({"1.png": PNGS[0], "1.png|": PNGS[1]}), [("a.tar/1.png", PNGS[0])],
        skipped=["a.tar/1.png: another member of this name"],
    ),
    "a damaged member": one(
        "a.tar", tar({"1.fits": b"no", "2.npy": npy(PIXELS)[:300], "3.png": PNGS[0]}),
        [("a.tar/3.png", PNGS[0])], skipped=["1.fits: cannot be read as FITS", "2.npy: it ends"],
    ),
    # Other wrappings, told by their bytes.
    **{
        f"FITS packed as {end}": one(
            f"a.fits{end}", pack(primary(G)), [(f"a.fits{end}", up(grey(G)))]
        )
        for end, pack in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress))
    },
    "gzip without saying so": one("a.fits", gzip.compress(primary(G)), [("a.fits", up(grey(G)))]),
    "no gzip in spite of the name": one("a.fits.gz", primary(G), [("a.fits.gz", up(grey(G)))]),
    "an array in gzip": one(
        "a.npy.gz", gzip.compress(npy(PIXELS)), [(f"a.npy.gz#{i}", PIXELS[i]) for i in range(3)]
    ),
    "packed with compress": one(
        "a.fits.Z", b"\x1f\x9d\x90" + primary(G), skipped=["packed with compress (.Z)"]
    ),
    # Tables.
    "ids as they are": one(
        "t.parquet",
        table(id=pa.array([b"a", b"\xff", None, b"a"]), x=[*PNGS, PNGS[0]]), [("a", PNGS[0])],
        skipped=["t.parquet#1: its id in id is no UTF-8", "t.parquet#2: its id in id is null",
                 "t.parquet#3: its id 'a' is that of an earlier row"],
        options={"id_column": "id", "column": "x"},
    ),
    "dictionary-encoded ids and images": one(
        "t.parquet",
        table(id=pa.array(["p", "q"]).dictionary_encode(),
              x=pa.array(PNGS[:2]).dictionary_encode()),
        [("p", PNGS[0]), ("q", PNGS[1])], options={"id_column": "id"},
    ),
    **{
        f"{name} views": one("t.parquet", view, [(f"t.parquet#{i}", PNGS[i]) for i in range(2)])
        for name, view in views(PNGS[:2]).items()
    },
    "lists of images": one(
        "t.parquet",
        table(x=pa.array([[{"bytes": PNGS[0]}, {"bytes": PNGS[1]}], [{"bytes": PNGS[2]}], []],
                         pa.list_(FEATURE))),
        [("t.parquet#0/0", PNGS[0]), ("t.parquet#0/1", PNGS[1]), ("t.parquet#1", PNGS[2])],
        skipped=["t.parquet#2: it holds no image"],
    ),
    "fluxes in nested lists": one(
        "t.parquet", table(x=[FLUXES[0].tolist()]), [("t.parquet#0", to_rgb(FLUXES[0], HSC))],
        options={"stretch": HSC},
    ),
    # Names.
    "an image beside its mask and weight": Case(
        {"n1.fits": primary(G), "n1_mask.fits": primary(R), "weights/n1.fits": primary(Z)},
        [("n1.fits", up(grey(G)))],
        passed=["n1_mask.fits: by its name a mask", "weights/n1.fits: by its name a mask"],
    ),
    "masks that were asked for": Case(
        {"1_mask.png": PNGS[0], "2_mask.png": PNGS[1]},
        [("1_mask.png", PNGS[0]), ("2_mask.png", PNGS[1])],
    ),
    "ASDF beside an image": Case(
        {"a.asdf": b"#ASDF", "b.png": PNGS[0]}, [("b.png", PNGS[0])],
        passed=["a.asdf: ASDF is not read: save the images"],
    ),
}  # fmt: skip


def seen(item: Item) -> Array | bytes:
    """What the model sees of a row, before it is resized. Raises InputError."""
    if callable(item.data):
        return item.data()
    if isinstance(item.data, str):
        return Path(item.data).read_bytes()
    return item.data


def results(found: Sequence[Item | Skipped]) -> list[tuple[str, Array | bytes] | Skipped]:
    """As entries_of, with the faults that show only when a row is sent."""
    done: list[tuple[str, Array | bytes] | Skipped] = []
    for entry in found:
        if isinstance(entry, Skipped):
            done.append(entry)
            continue
        try:
            done.append((entry.id, seen(entry)))
        except InputError as error:
            done.append(Skipped(id=entry.id, reason=error.message))
    return done


@pytest.mark.parametrize("name", CASES)
def test_every_row_is_what_it_is(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    write(tmp_path, case.files)
    found = results(entries_of(tmp_path, ReadOptions(**case.options)))
    rows = [one for one in found if not isinstance(one, Skipped)]
    assert [row_id.removeprefix(f"{tmp_path}/") for row_id, _ in rows] == [i for i, _ in case.rows]
    for (_, got), (_, wanted) in zip(rows, case.rows, strict=True):
        np.testing.assert_array_equal(got, wanted)
    for fault, wanted_parts in ((True, case.skipped), (False, case.passed)):
        left = [one for one in found if isinstance(one, Skipped) and one.fault is fault]
        told = [f"{one.id}: {one.reason}" for one in left]
        assert len(told) == len(wanted_parts), told
        for part in wanted_parts:
            assert any(part in line for line in told), (part, told)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].rows])
def test_reading_goes_on_after_any_entry(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    write(tmp_path, case.files)
    options = ReadOptions(**case.options)
    for source in find_sources([str(tmp_path)], options=options):
        try:
            whole = list(open_reader(source, options).read(0))
        except InputError:
            continue
        for start in range(len(whole) + 1):
            rest = list(open_reader(source, options).read(start))
            assert [one.id for one in rest] == [one.id for one in whole[start:]]
