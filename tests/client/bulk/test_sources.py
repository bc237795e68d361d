"""Every kind of source through the command and the real service: ids, values, faults."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from vim_embed_client.bulk.sources.reader import Item, Skipped
from vim_embed_client.bulk.sources.registry import ReadOptions, open_reader
from vim_embed_client.cli.common import SOME_LEFT_OUT

from .conftest import Embed
from .survey import SIZE, WRITERS, Array, expected, pictures, png, write_tar

Writer = Callable[[Path, Array], list[str]]


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_rows_of_a_source(embed: Embed, tmp_path: Path, writer: Writer) -> None:
    pixels = pictures(150)
    names = writer(tmp_path / "shard", pixels)
    source = next(tmp_path.glob("shard*"))
    ids, rows = embed(source, "--batch-rows", 40)
    assert ids == names
    np.testing.assert_array_equal(rows, expected(pixels))


@pytest.mark.parametrize("writer", WRITERS[1:], ids=lambda writer: writer.__name__)
@pytest.mark.parametrize("start", [0, 1, 699, 700, 799, 800])
def test_reading_goes_on_in_the_middle(tmp_path: Path, writer: Writer, start: int) -> None:
    pixels = pictures(800)
    names = writer(tmp_path / "shard", pixels)
    reader = open_reader(str(next(tmp_path.glob("shard*"))), ReadOptions())
    rest = list(reader.read(start))
    assert [entry.id for entry in rest if isinstance(entry, Item)] == names[start:]
    whole = list(reader.read(0))[start:]
    for one, other in zip(rest, whole, strict=True):
        if isinstance(one, Item):
            assert isinstance(other, Item)
            np.testing.assert_array_equal(np.asarray(one.data), np.asarray(other.data))
        else:
            assert one == other
            assert not one.fault


def test_all_kinds_at_once_in_the_order_of_their_paths(embed: Embed, tmp_path: Path) -> None:
    folder = tmp_path / "survey"
    folder.mkdir()
    names, blocks = [], []
    for number, writer in enumerate(WRITERS):
        blocks.append(pictures(20, seed=number))
        names += writer(folder / f"{number}", blocks[-1])
    ids, rows = embed(folder)
    assert ids == names
    np.testing.assert_array_equal(rows, expected(np.concatenate(blocks)))


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_members_of_a_webdataset_sample_are_told_apart(embed: Embed, tmp_path: Path) -> None:
    left, right, stack = pictures(1), pictures(1, seed=1), pictures(3, seed=2)
    shard = tar(
        tmp_path / "a.tar",
        {
            "x/1.left.png": png(left[0]),
            "x/1.right.PNG": png(right[0]),
            "x/1.json": b"{}",
            "x/._1.png": b"what some systems leave",
            "x/2.npy": npy(stack),
        },
    )
    ids, rows = embed(shard)
    assert ids == [
        f"{shard}/x/1.left.png",
        f"{shard}/x/1.right.PNG",
        *(f"{shard}/x/2.npy#{row}" for row in range(3)),
    ]
    np.testing.assert_array_equal(rows, expected(np.concatenate([left, right, stack])))
    ids, rows = embed(shard, "--column", "right.png")
    assert ids == [f"{shard}/x/1.right.PNG"]
    np.testing.assert_array_equal(rows, expected(right))


def test_a_large_plain_tar_is_not_held_in_memory(tmp_path: Path) -> None:
    write_tar(tmp_path / "a", pictures(300))
    reader = open_reader(str(tmp_path / "a.tar"), ReadOptions())
    entries = reader.read(0)
    next(entries)
    inner: Any = entries.gi_frame.f_locals["entries"]  # type: ignore[attr-defined]
    archive: Any = inner.gi_frame.f_locals["archive"]
    for _ in entries:
        assert len(archive.members) <= 1


BROKEN: dict[str, Callable[[bytes, bytes], bytes]] = {
    "cut.tar": lambda tar, gz: tar[: len(tar) // 2],
    "cut-at-a-header.tar": lambda tar, gz: tar[: 1024 * 20 + 300],
    "damaged-header.tar": lambda tar, gz: tar[:20480] + b"\xff" * 512 + tar[20992:],
    "cut.tar.gz": lambda tar, gz: gz[: len(gz) // 2],
    "no.tar": lambda tar, gz: b"not a tar file" * 100,
    "empty.tar": lambda tar, gz: b"",
    "no.npz": lambda tar, gz: b"not an archive",
    "no.npy": lambda tar, gz: b"not an array",
    "no.parquet": lambda tar, gz: b"not a table",
    "no.fits": lambda tar, gz: b"not FITS",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_sources_are_reported_after_their_sound_rows(
    embed: Embed, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "sound", pictures(50))
    write_tar(tmp_path / "sound", pictures(50), suffix=".tar.gz", mode="w:gz")
    whole = [(tmp_path / f"sound.{end}").read_bytes() for end in ("tar", "tar.gz")]
    (tmp_path / "z").mkdir()
    broken = tmp_path / "z" / name
    broken.write_bytes(BROKEN[name](*whole))
    ids, rows = embed(tmp_path / "sound.tar", broken, "--on-error", "skip", code=SOME_LEFT_OUT)
    assert ids[:50] == [f"{tmp_path}/sound.tar/{row:06}.png" for row in range(50)]
    assert all(row_id.startswith(str(broken)) for row_id in ids[50:])
    assert len(ids) < 100
    assert f"skipped {broken}: " in capsys.readouterr().err
    np.testing.assert_array_equal(rows[50:], expected(pictures(50))[: len(ids) - 50])
    embed(tmp_path / "sound.tar", broken, code=1)
    assert f"Error: {broken}: " in capsys.readouterr().err


def test_sources_without_images_are_reported(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {"notes.txt": b"none"})
    np.savez(tmp_path / "a.npz", labels=np.arange(3))
    pyarrow.parquet.write_table(pa.table({"label": [1]}), tmp_path / "a.parquet")
    for name, reason in (
        ("a.tar", "no images in it, but .txt 1"),
        ("a.npz", "no image arrays"),
        ("a.parquet", "no column seems to hold images"),
    ):
        with pytest.raises(ValueError, match=reason):
            list(open_reader(str(tmp_path / name), ReadOptions()).read(0))


def test_the_array_of_an_npz_is_chosen(embed: Embed, tmp_path: Path) -> None:
    first, second = pictures(2), pictures(1, seed=1)
    path = tmp_path / "a.npz"
    np.savez(path, first=first, second=np.asfortranarray(second), one=first[1])
    ids, rows = embed(path)
    assert ids == [f"{path}:first#0", f"{path}:first#1", f"{path}:second#0", f"{path}:one"]
    everything = np.concatenate([first, second, first[1:]])
    np.testing.assert_array_equal(rows, expected(everything))
    assert embed(path, "--column", "second")[0] == [f"{path}:second#0"]
    embed(path, "--column", "third", code=1)


def column(table: pa.Table, tmp_path: Path, **reading: Any) -> list[Item | Skipped]:
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(table, path)
    return list(open_reader(str(path), ReadOptions(**reading)).read(0))


def data(entry: Item | Skipped) -> Array:
    assert isinstance(entry, Item), entry
    return np.asarray(entry.data)


def test_columns_of_a_table(tmp_path: Path) -> None:
    pixels = pictures(3)
    nested = pa.array(pixels.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
    fixed = pa.array(pixels.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8(), SIZE), SIZE), 3))
    last = pa.array(pixels.transpose(0, 2, 3, 1).tolist())
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    flat = pa.array([one.ravel().tolist() for one in pixels])
    for values in (nested, fixed, last, tensor):
        found = column(pa.table({"id": ["a", "b", "c"], "x": values}), tmp_path)
        for entry, one in zip(found, pixels, strict=True):
            assert data(entry).dtype == np.uint8
            np.testing.assert_array_equal(data(entry), one)
    found = column(pa.table({"x": flat}), tmp_path, column="x", shape=(3, SIZE, SIZE))
    np.testing.assert_array_equal(np.stack([data(one) for one in found]), pixels)
    raw = column(pa.table({"x": [png(one) for one in pixels]}), tmp_path)
    assert [one.data for one in raw if isinstance(one, Item)] == [png(one) for one in pixels]


def test_ids_come_from_a_column(embed: Embed, tmp_path: Path) -> None:
    pixels = pictures(2)
    table = pa.table({"source": [17, 23], "png": [png(one) for one in pixels]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    ids, rows = embed(tmp_path / "t.parquet", "--id-column", "source")
    assert ids == ["17", "23"]
    np.testing.assert_array_equal(rows, expected(pixels))


def test_images_that_a_table_only_names(embed: Embed, tmp_path: Path) -> None:
    pixels = pictures(1)
    (tmp_path / "a.png").write_bytes(png(pixels[0]))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = [{"path": "a.png"}, {"path": "gone.png"}, None, {}, {"bytes": b""}]
    pyarrow.parquet.write_table(pa.table({"x": pa.array(values, kind)}), tmp_path / "t.parquet")
    ids, rows = embed(tmp_path / "t.parquet", "--on-error", "skip", code=SOME_LEFT_OUT)
    assert ids == [f"{tmp_path}/t.parquet#0"]
    np.testing.assert_array_equal(rows, expected(pixels))
    reasons = [
        entry.reason
        for entry in open_reader(str(tmp_path / "t.parquet"), ReadOptions()).read(1)
        if isinstance(entry, Skipped)
    ]
    words = ("cannot be read", "null", "neither bytes nor a path", "empty")
    assert [word in reason for word, reason in zip(words, reasons, strict=True)] == [True] * 4


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([[[[1, 2], [3]], [[1, 2], [3, 4]]]], "not all of one length"),
        ([[[[1, 300]] * 2] * 3], "within 0 to 255"),
        ([[[[1, None]] * 2] * 3], "are null"),
        ([[[[1, 2]] * 2] * 4], "it has 4 bands"),
        ([[[[]]]], "empty"),
    ],
)
def test_values_that_are_no_images(tmp_path: Path, values: Any, reason: str) -> None:
    (entry,) = column(pa.table({"x": pa.array(values)}), tmp_path)
    assert isinstance(entry, Skipped)
    assert reason in entry.reason


def test_a_choice_of_columns_is_left_to_the_user(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"choose one with --column \(a, b\)"):
        column(pa.table({"a": [b"1"], "b": [b"2"]}), tmp_path)
    with pytest.raises(ValueError, match="has no column 'c'"):
        column(pa.table({"a": [b"1"]}), tmp_path, column="c")
    (entry,) = column(pa.table({"a": [[1, 2]]}), tmp_path, column="a", shape=(3, 2, 2))
    assert isinstance(entry, Skipped)
    assert "it has 2 numbers, which are not (3, 2, 2)" in entry.reason


def test_uint8_arrays_are_resized_if_asked(embed: Embed, tmp_path: Path) -> None:
    large = np.random.default_rng(0).integers(0, 256, (2, 3, 20, 30), dtype=np.uint8)
    np.save(tmp_path / "a.npy", large)
    write_tar(tmp_path / "b", large)
    _, as_images = embed(tmp_path / "b.tar")
    _, as_arrays = embed(tmp_path / "a.npy", "--resize")
    np.testing.assert_array_equal(as_arrays, as_images)


def test_arrays_of_another_size_are_told(embed: Embed, tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "a.npy", pictures(2))
    np.save(tmp_path / "b.npy", np.zeros((2, 3, 20, 30), np.uint8))
    embed(tmp_path / "a.npy")
    embed(tmp_path / "b.npy", "--resize")
    assert "as it is" not in capsys.readouterr().err
    embed(tmp_path / "a.npy", tmp_path / "b.npy")
    told = capsys.readouterr().err
    assert "an array of 20×30 pixels was embedded as it is" in told
    assert f"the model is made for {SIZE}×{SIZE}" in told
    embed(tmp_path / "b.npy", "--quiet")
    assert capsys.readouterr().err == ""


def test_the_output_and_its_parts_are_no_input(embed: Embed, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pictures(2))
    (tmp_path / "out" / "out.npy.parts").mkdir(parents=True)
    np.save(tmp_path / "out" / "out.npy.parts" / "000000.npy", pictures(1))
    assert len(embed(tmp_path)[0]) == 2
