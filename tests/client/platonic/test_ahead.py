"""Calls that go on behind the host's back: order, numbers, errors and memory as without."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from client.fake_service import DIM, LAYERS, SIZE, FakeService, embed_rows, refuse, wait_for
from client.fake_service import serve as serve_fake
from vim_embed_client import ConfigurationError, InputError, VimEmbedError
from vim_embed_client.platonic import RemoteAdapter
from vim_embed_client.platonic.ahead import Ahead
from vim_embed_client.platonic.lazy import LazyRows

LONG_S = 60.0


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    for name in ("API_KEY", "WIRE", "PATIENCE", "AHEAD", "POOLING", "ROW_CACHE", "PROVENANCE"):
        monkeypatch.delenv(f"VIM_EMBED_{name}", raising=False)
    monkeypatch.setenv("VIM_EMBED_ALLOW", "missing-sizes")
    service = FakeService()
    with serve_fake(service.app()) as url:
        monkeypatch.setenv("VIM_EMBED_URL", url)
        yield service


def loaded() -> RemoteAdapter:
    adapter = RemoteAdapter("vim-tiny", "tiny", alias="vim-remote-tiny")
    adapter.load()
    return adapter


def batch(index: int, rows: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(index)
    shape = (rows, 3, SIZE, SIZE)
    return {"hsc": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)}


def right(index: int, rows: int = 3) -> Any:
    return embed_rows(batch(index, rows)["hsc"].numpy())


def test_later_calls_return_before_their_numbers_are_there(fake: FakeService) -> None:
    adapter = loaded()
    first = adapter.embed_for_mode(batch(0), "hsc")
    assert type(first) is torch.Tensor
    go = threading.Event()
    fake.always = wait_for(go)
    later = [adapter.embed_for_mode(batch(index), "hsc") for index in (1, 2, 3, 4)]
    assert all(isinstance(rows, LazyRows) and rows.shape == (3, DIM) for rows in later)
    go.set()
    found = torch.cat([first, *later])
    assert type(found) is torch.Tensor
    np.testing.assert_array_equal(found.numpy(), np.concatenate([right(i) for i in range(5)]))


def test_one_request_after_another_in_the_order_of_the_calls(fake: FakeService) -> None:
    adapter = loaded()
    found = [adapter.embed_for_mode(batch(i, rows=i + 1), "hsc") for i in range(8)]
    torch.cat(found)
    assert [seen.rows for seen in fake.seen] == list(range(1, 9))
    assert fake.most_running == 1


def test_no_more_calls_are_under_way_than_are_allowed(
    fake: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIM_EMBED_AHEAD", "2")
    adapter = loaded()
    adapter.embed_for_mode(batch(0), "hsc")
    go, third = threading.Event(), threading.Event()
    fake.always = wait_for(go)

    def run() -> None:
        for index in (1, 2, 3):
            adapter.embed_for_mode(batch(index), "hsc")
        third.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert not third.wait(0.2)  # it would only be seen too early, never too late
    go.set()
    assert third.wait(LONG_S)
    thread.join()


def test_without_sending_ahead_every_call_waits(
    fake: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIM_EMBED_AHEAD", "0")
    adapter = loaded()
    for index in range(3):
        found = adapter.embed_for_mode(batch(index), "hsc")
        assert type(found) is torch.Tensor
        np.testing.assert_array_equal(found.numpy(), right(index))
    fake.always = refuse(400, "invalid_input", "not these")
    with pytest.raises(VimEmbedError, match="not these"):
        adapter.embed_for_mode(batch(3), "hsc")


def test_a_failure_names_its_rows_and_comes_with_the_next_call(fake: FakeService) -> None:
    adapter = loaded()
    good = [adapter.embed_for_mode(batch(0), "hsc"), adapter.embed_for_mode(batch(1), "hsc")]
    torch.cat(good)
    fake.faults.append(refuse(400, "invalid_input", "not these"))
    bad = adapter.embed_for_mode(batch(2), "hsc")
    with pytest.raises(VimEmbedError, match="not these") as caught:
        bad.numpy()
    assert caught.value.__notes__ == ["while embedding rows 6 to 8 of hsc"]
    with pytest.raises(VimEmbedError, match="not these") as again:
        adapter.embed_for_mode(batch(3), "hsc")
    assert again.value.__notes__ == ["while embedding rows 6 to 8 of hsc"]
    assert len(fake.seen) == 3
    np.testing.assert_array_equal(torch.cat(good).numpy(), np.concatenate([right(0), right(1)]))
    found = adapter.embed_for_mode(batch(4), "hsc")  # a caller that goes on starts afresh
    np.testing.assert_array_equal(found.numpy(), right(4))


def test_what_stands_behind_a_failure_is_not_sent(fake: FakeService) -> None:
    adapter = loaded()
    adapter.embed_for_mode(batch(0), "hsc")
    go = threading.Event()
    fake.faults.extend([wait_for(go), refuse(400, "invalid_input", "not these")])
    rows = [adapter.embed_for_mode(batch(index), "hsc") for index in (1, 2, 3)]
    go.set()
    np.testing.assert_array_equal(rows[0].numpy(), right(1))
    for failed in rows[1:]:
        with pytest.raises(VimEmbedError, match="not these"):
            failed.sum()
    assert len(fake.seen) == 3


def test_pixels_that_cannot_be_embedded_are_refused_at_their_own_call(fake: FakeService) -> None:
    adapter = loaded()
    adapter.embed_for_mode(batch(0), "hsc")
    pixels = torch.zeros(2, 3, SIZE, SIZE)
    pixels[1, 0, 2, 2] = float("nan")
    with pytest.raises(InputError, match=r"rows \[1\] hold NaN"):
        adapter.embed_for_mode({"hsc": pixels}, "hsc")
    assert len(fake.seen) == 1


def test_pixels_that_change_on_their_way_are_not_embedded_in_silence(fake: FakeService) -> None:
    adapter = loaded()
    adapter.embed_for_mode(batch(0), "hsc")
    go = threading.Event()
    fake.always = wait_for(go)
    adapter.embed_for_mode(batch(1), "hsc")
    changing = batch(2)
    found = adapter.embed_for_mode(changing, "hsc")
    changing["hsc"].zero_()
    go.set()
    with pytest.raises(InputError, match="changed before they were embedded") as caught:
        found.numpy()
    assert caught.value.__notes__ == ["while embedding rows 6 to 8 of hsc"]


def test_arrays_may_be_filled_anew(fake: FakeService) -> None:
    adapter = loaded()
    adapter.embed_for_mode(batch(0), "hsc")
    go = threading.Event()
    fake.always = wait_for(go)
    buffer = batch(1)["hsc"].numpy().copy()
    with torch.inference_mode():
        uncounted = batch(2)["hsc"].clone()
    found = [adapter.embed_for_mode({"hsc": values}, "hsc") for values in (buffer, uncounted)]
    buffer[:] = 0
    uncounted.numpy()[:] = 0
    go.set()
    for index, rows in enumerate(found, 1):
        np.testing.assert_array_equal(rows.numpy(), right(index))


def test_layers_too(fake: FakeService) -> None:
    adapter = loaded()
    first = adapter.embed_all_layers_for_mode(batch(0), "hsc")
    go = threading.Event()
    fake.always = wait_for(go)
    later = adapter.embed_all_layers_for_mode(batch(1), "hsc")
    assert list(later) == list(first) == LAYERS
    assert all(isinstance(rows.cpu(), LazyRows) for rows in later.values())
    go.set()
    for place, rows in enumerate(later.values(), 1):
        np.testing.assert_array_equal(rows.numpy(), right(1) * np.float32(place))


def test_a_dropped_adapter_ends_its_thread(fake: FakeService) -> None:
    others = set(threading.enumerate())
    adapter = loaded()
    threads = set(threading.enumerate()) - others
    adapter.embed_for_mode(batch(0), "hsc")
    rows = adapter.embed_for_mode(batch(1), "hsc")
    dropped = weakref.ref(adapter)
    assert [each.name for each in threads] == ["vim-embed ahead"]
    del adapter
    np.testing.assert_array_equal(rows.numpy(), right(1))
    gc.collect()
    assert dropped() is None
    for thread in threads:
        thread.join(LONG_S)
        assert not thread.is_alive()


def test_calls_never_overlap() -> None:
    ahead, running, most = Ahead(3), 0, 0

    def call() -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        running -= 1
        return most

    assert [ahead.submit(call).result(LONG_S) for _ in range(20)] == [1] * 20


@pytest.mark.parametrize("value", ["-1", "1.5", "many", "inf"])
def test_an_unusable_number_of_calls(
    fake: FakeService, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("VIM_EMBED_AHEAD", value)
    with pytest.raises(ConfigurationError, match="VIM_EMBED_AHEAD is"):
        loaded()


PLAIN = torch.arange(12, dtype=torch.float32).reshape(4, 3)
USES: dict[str, Callable[[torch.Tensor], Any]] = {
    "cat": lambda x: torch.cat([x, PLAIN]),
    "stack": lambda x: torch.stack((x, x)),
    "numpy": lambda x: x.cpu().numpy(),
    "asarray": lambda x: np.asarray(x.detach().float()),
    "concatenate": lambda x: np.concatenate([x, x]),
    "torch.tensor": lambda x: torch.tensor(x.tolist()),
    "torch.as_tensor": lambda x: torch.as_tensor(x) + 0,
    "index": lambda x: x[1:],
    "add": lambda x: 1 + x,
    "matmul": lambda x: x @ x.T,
    "to": lambda x: x.to(torch.float64),
    "contiguous": lambda x: x.contiguous().view(-1),
    "clone": lambda x: x.clone(),
    "rows": lambda x: np.stack([row.numpy() for row in x]),
    "dlpack": lambda x: np.from_dlpack(x),
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "keyword": lambda x: torch.add(input=x, other=x),
    "out": lambda x: torch.add(PLAIN, 1, out=torch.empty(4, 3)) * x,
}


@pytest.mark.parametrize("use", USES)
def test_lazy_rows_are_a_tensor_for_whoever_uses_them(use: str) -> None:
    waited: list[int] = []

    def wait() -> torch.Tensor:
        waited.append(1)
        return PLAIN

    lazy = LazyRows(4, 3, wait)
    assert isinstance(lazy, torch.Tensor)
    assert (lazy.shape, lazy.ndim, lazy.size(0), lazy.dim()) == ((4, 3), 2, 4, 2)
    assert lazy.cpu().float().detach() is lazy
    assert not waited
    found, expected = USES[use](lazy), USES[use](PLAIN)
    assert waited
    assert type(found) is type(expected)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
