"""The cache of finished rows: what counts as the same row, its bound, kills, damage."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client import fake_service
from client.fake_service import DIM, LAYERS, SIZE, FakeService, embed_rows, refuse
from client.fake_service import serve as serve_fake
from vim_embed_client import BadAnswerError, ConfigurationError, Provenance, VimEmbedError
from vim_embed_client.platonic import RemoteAdapter
from vim_embed_client.platonic.model import LAST
from vim_embed_client.platonic.row_cache import RowCache, row_keys
from vim_embed_client.platonic.rows import Rows

GIB = 1024**3


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeService]:
    for name in ("API_KEY", "WIRE", "PATIENCE", "AHEAD", "POOLING", "ROW_CACHE_GIB"):
        monkeypatch.delenv(f"VIM_EMBED_{name}", raising=False)
    monkeypatch.setenv("VIM_EMBED_ALLOW", "missing-sizes")
    monkeypatch.setenv("VIM_EMBED_ROW_CACHE", str(tmp_path / "cache"))
    service = FakeService()
    with serve_fake(service.app()) as url:
        monkeypatch.setenv("VIM_EMBED_URL", url)
        yield service


def loaded() -> RemoteAdapter:
    adapter = RemoteAdapter("vim-tiny", "tiny", alias="vim-remote-tiny")
    adapter.load()
    return adapter


def pixels(rows: int, start: int = 0) -> Any:
    generator = np.random.default_rng(0)
    values = generator.integers(0, 256, (start + rows, 3, SIZE, SIZE), dtype=np.uint8)
    return values[start:]


def embedded(adapter: RemoteAdapter, values: Any) -> Any:
    return adapter.embed_for_mode({"hsc": torch.from_numpy(values)}, "hsc").numpy()


def sent(service: FakeService) -> list[int]:
    """Rows of the requests, without the black image that asks for the provenance."""
    rows = [seen.rows for seen in service.seen]
    service.seen.clear()
    return rows[1:]


def test_what_was_embedded_once_is_not_sent_again(fake: FakeService) -> None:
    first = embedded(loaded(), pixels(5))
    np.testing.assert_array_equal(first, embed_rows(pixels(5)))
    assert sent(fake) == [5]
    again = loaded()
    np.testing.assert_array_equal(embedded(again, pixels(5)), first)
    assert sent(fake) == []
    np.testing.assert_array_equal(embedded(again, pixels(7)), embed_rows(pixels(7)))
    assert [seen.rows for seen in fake.seen] == [2]
    shuffled = np.array([6, 0, 0, 3])
    found = embedded(again, pixels(7)[shuffled])
    np.testing.assert_array_equal(found, embed_rows(pixels(7))[shuffled])


@pytest.mark.parametrize(
    "name",
    [
        "Weights-Digest", "Preprocessing-Digest", "Pooling", "Dtype", "Backend", "Exact",
        "Exact-Rows", "Family", "Version", "Device", "Revision",
    ],
)  # fmt: skip
def test_a_row_of_another_computation_is_another_row(
    fake: FakeService, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    embedded(loaded(), pixels(2))
    other = "true" if name == "Exact" else "sha256:other"
    fake.provenance[name] = other
    entry = fake_service.entry()
    entry["weights"]["digest"] = fake.provenance["Weights-Digest"]
    entry["preprocessing"]["digest"] = fake.provenance["Preprocessing-Digest"]
    monkeypatch.setattr(fake_service, "entry", lambda: entry)
    fake.seen.clear()
    embedded(loaded(), pixels(2))
    assert sent(fake) == [2]


def test_pixels_count_by_their_bytes_shape_and_meaning() -> None:
    values = pixels(1)
    variants = [
        values,
        values.astype(np.float32),
        values.astype(np.float64),
        values.reshape(1, 3, SIZE // 2, SIZE * 2),
        values ^ np.uint8(1),
    ]
    keys = {row_keys(each, {"model": "a"})[0] for each in variants}
    assert len(keys) == len(variants)
    assert row_keys(values, {"model": "b"})[0] not in keys
    strided = np.repeat(values, 2, axis=3)[..., ::2]
    assert row_keys(strided, {"model": "a"}) == row_keys(values, {"model": "a"})


def test_layers_and_the_embedding_alone_are_kept_apart(fake: FakeService) -> None:
    batch = {"hsc": torch.from_numpy(pixels(3))}
    first = {k: v.numpy() for k, v in loaded().embed_all_layers_for_mode(batch, "hsc").items()}
    assert sent(fake) == [3]
    again = loaded()
    found = again.embed_all_layers_for_mode(batch, "hsc")
    assert sent(fake) == []
    assert list(found) == LAYERS
    for name, rows in first.items():
        np.testing.assert_array_equal(found[name].numpy(), rows)
    embedded(again, pixels(3))
    assert [seen.rows for seen in fake.seen] == [3]


def test_two_devices_of_one_kind_are_one(fake: FakeService) -> None:
    embedded(loaded(), pixels(2))
    fake.provenance["Device"] = "cuda:1,cuda:0"
    fake.seen.clear()
    embedded(loaded(), pixels(2))
    assert sent(fake) == []


def test_rows_that_are_no_rows_are_not_kept(
    fake: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as spoiled:
        spoiled.setattr(
            fake_service, "embed_rows", lambda given, **options: 0 * embed_rows(given, **options)
        )
        adapter = loaded()
        with pytest.raises(BadAnswerError):
            embedded(adapter, pixels(2))
    fake.seen.clear()
    np.testing.assert_array_equal(embedded(loaded(), pixels(2)), embed_rows(pixels(2)))
    assert sent(fake) == [2]


def test_a_run_that_breaks_off_keeps_the_batches_that_it_had(fake: FakeService) -> None:
    adapter = loaded()
    embedded(adapter, pixels(4))
    fake.faults.append(refuse(400, "invalid_input", "no"))
    with pytest.raises(VimEmbedError, match="no"):
        embedded(adapter, pixels(4, start=4))
    fake.seen.clear()
    np.testing.assert_array_equal(embedded(loaded(), pixels(8)), embed_rows(pixels(8)))
    assert sent(fake) == [4]


def row(value: int, width: int = 100) -> dict[str, Any]:
    return {LAST: np.full(width, value, np.float32)}


def key(value: int) -> bytes:
    return hashlib.sha256(str(value).encode()).digest()


def test_the_oldest_rows_go_where_the_bound_is_reached(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, most_bytes=10 * 440)
    for value in range(30):
        cache.put([(key(value), row(value))])
    keys = [key(value) for value in range(30)]
    found = cache.get(keys)
    assert 5 <= len(found) <= 10
    assert set(found) == set(keys[-len(found) :])
    for value in range(30 - len(found), 30):
        np.testing.assert_array_equal(found[key(value)][LAST], row(value)[LAST])
    cache.put([(key(99), row(99, 5000))])  # alone too large
    assert key(99) not in cache.get([key(99)])
    assert cache.path.stat().st_size < 20 * 440 + 5000 * 4 + 64 * 1024


def test_a_row_put_twice_counts_once(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, most_bytes=10 * 440)
    cache.put([(key(0), row(0))])
    for _ in range(12):
        cache.put([(key(1), row(1)), (key(1), row(1))])
    assert set(cache.get([key(0), key(1)])) == {key(0), key(1)}


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        ("UPDATE rows SET value = zeroblob(length(value)) WHERE id = 1", 1),
        ("UPDATE rows SET key = x'00' || substr(key, 2) WHERE id = 1", 1),
        ("UPDATE rows SET crc = crc + 1", 0),
    ],
)
def test_a_damaged_row_is_no_row(tmp_path: Path, damage: str, left: int) -> None:
    RowCache(tmp_path, GIB).put([(key(0), row(0)), (key(1), row(1))])
    with sqlite3.connect(tmp_path / "rows.sqlite") as database:
        database.execute(damage)
    database.close()
    moved = b"\x00" + key(0)[1:]
    assert len(RowCache(tmp_path, GIB).get([key(0), key(1), moved])) == left


@pytest.mark.parametrize("content", [b"no database at all " * 100, None])
def test_a_cache_that_cannot_be_used_is_said_at_load(
    fake: FakeService, tmp_path: Path, content: bytes | None
) -> None:
    if content is None:
        (tmp_path / "cache").write_text("a file where the folder is to be")
    else:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "rows.sqlite").write_bytes(content)
    with pytest.raises(ConfigurationError, match="cannot be used") as caught:
        loaded()
    assert "VIM_EMBED_ROW_CACHE" in str(caught.value)


def test_a_cache_of_another_format_is_refused(tmp_path: Path) -> None:
    RowCache(tmp_path, GIB)
    with sqlite3.connect(tmp_path / "rows.sqlite") as database:
        database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(ConfigurationError, match="it has format 7, not 1"):
        RowCache(tmp_path, GIB)


def test_a_cache_that_fails_in_mid_run_does_not_end_it(
    fake: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = loaded()
    embedded(adapter, pixels(2))
    with sqlite3.connect(tmp_path / "cache" / "rows.sqlite") as database:
        database.execute("DROP TABLE rows")
    database.close()
    np.testing.assert_array_equal(embedded(adapter, pixels(4)), embed_rows(pixels(4)))
    np.testing.assert_array_equal(embedded(adapter, pixels(6)), embed_rows(pixels(6)))
    assert capsys.readouterr().out.count("going on without a cache") == 1


@pytest.mark.parametrize(("gib", "message"), [("0", "is 0"), ("much", "a number from 0")])
def test_an_unusable_bound(
    fake: FakeService, monkeypatch: pytest.MonkeyPatch, gib: str, message: str
) -> None:
    monkeypatch.setenv("VIM_EMBED_ROW_CACHE_GIB", gib)
    with pytest.raises(ConfigurationError, match=message):
        loaded()
    monkeypatch.delenv("VIM_EMBED_ROW_CACHE")
    with pytest.raises(ConfigurationError, match="has no effect without VIM_EMBED_ROW_CACHE"):
        loaded()


class Counting:
    """A model whose rows tell their pixels; it counts what it computed."""

    def __init__(self) -> None:
        self.rows = 0

    def provenance(self) -> Provenance:
        return Provenance(model="counting")

    def embed(self, values: Any) -> Any:
        self.rows += len(values)
        return values.reshape(len(values), -1)[:, :DIM].astype(np.float32) + 1


def test_several_threads_and_caches_share_a_file(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            rows = Rows(Counting(), RowCache(tmp_path, GIB), "uint8")  # type: ignore[arg-type]
            order = np.random.default_rng(seed)
            for _ in range(20):
                some = pixels(40)[order.integers(0, 40, 6)]
                expected = some.reshape(6, -1)[:, :DIM].astype(np.float32) + 1
                np.testing.assert_array_equal(rows.embed(some)[LAST], expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


FILLER = """
import hashlib, sys
from pathlib import Path
import numpy as np
from vim_embed_client.platonic.row_cache import RowCache
cache = RowCache(Path(sys.argv[1]), 1 << 30)
for batch in range(10**6):
    values = range(8 * batch, 8 * batch + 8)
    cache.put((hashlib.sha256(str(v).encode()).digest(),
               {"last_hidden_state": np.full(100, v, np.float32)}) for v in values)
    print(batch, flush=True)
"""


def test_kills_leave_whole_batches_and_right_rows(tmp_path: Path) -> None:
    chance = np.random.default_rng(3)
    for _ in range(3):
        command = [sys.executable, "-c", FILLER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            told = 0
            for _ in range(int(chance.integers(1, 30))):
                told = int(writer.stdout.readline()) + 1
            os.kill(writer.pid, signal.SIGKILL)
            rest = writer.stdout.read().splitlines()
        told = max([told, *(int(line) + 1 for line in rest if line.isdigit())])
        keys = [key(value) for value in range(8 * (told + 3))]
        found = RowCache(tmp_path, GIB).get(keys)
        assert len(found) % 8 == 0
        assert found.keys() >= set(keys[: 8 * told])
        for value, name in enumerate(keys):
            if name in found:
                np.testing.assert_array_equal(found[name][LAST], row(value)[LAST])


def test_the_bound_of_a_provenance_is_all_of_it() -> None:
    """A field that provenance gains is part of a row's key at once."""
    said = Provenance(model="a")
    keys = {
        row_keys(pixels(1), vars(said))[0],
        row_keys(pixels(1), vars(replace(said, grid="1")))[0],
    }
    assert len(keys) == 2
