"""The torch engine on a real CUDA device: graphs, staging, exactness, running out of memory."""

from __future__ import annotations

import gc
import re
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vim_embed import load_model
from vim_embed.batching.queue import BatchQueue
from vim_embed.batching.request import EmbedRequest
from vim_embed.engines.torch_engine import EngineOptions, TorchEngine
from vim_embed.inference.beside import Beside, SideBySide
from vim_embed.inference.cuda_graphs import CudaCapture
from vim_embed.inference.embedder import Embedder
from vim_embed.inference.staging import StagedPixels
from vim_embed.kernels import streams
from vim_embed.kernels.streams import own_stream
from vim_embed.types.model_info import EMBEDDING, EmbedOptions
from vim_embed.types.pixels import PixelArray, PixelError
from vim_embed.types.preprocessing import Rounding
from vim_embed.weights.catalogue import CATALOGUE, CatalogueEntry

pytestmark = pytest.mark.gpu
DATA = Path(__file__).parent.parent / "data"
MICRO = CatalogueEntry(name="micro", kind="vim", path=DATA / "vim_micro.pth")
MEAN = EmbedOptions()


def engine(
    entry: CatalogueEntry, dtype: torch.dtype = torch.float32, *, random: bool = False
) -> TorchEngine:
    made = TorchEngine(
        [entry],
        EngineOptions(
            torch.device("cuda"),
            str(dtype).removeprefix("torch."),
            random_weights=random,
            batch_rows=32,
        ),
    )
    made.load()
    status = made.status()[entry.name]
    assert status.state == "ready", status.reason
    return made


def embed(
    made: TorchEngine, name: str, pixels: NDArray[np.generic], options: EmbedOptions = MEAN
) -> NDArray[np.float32]:
    return made.run(made.stage(name, [pixels], options))[EMBEDDING]


def eagerly(made: TorchEngine, name: str, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Without graphs."""
    found: NDArray[np.float32] = (
        made._models[name].compute(torch.from_numpy(pixels).cuda(), MEAN)[EMBEDDING].cpu().numpy()
    )
    return found


def relative_l2(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def images(rows: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, 3, size, size), dtype=np.uint8)


def test_fixture_numbers() -> None:
    made = engine(MICRO)
    with np.load(DATA / "vim_micro.npz") as fixture:
        found = embed(made, "micro", fixture["pixel_values"])
        assert relative_l2(found, fixture["mean"]) < 1e-5


@pytest.mark.parametrize("rows", [1, 3, 16, 17, 32, 45])
def test_graphs_give_the_eager_numbers(rows: int) -> None:
    made = engine(MICRO)
    pixels = images(rows, 64, rows)
    eager = eagerly(made, "micro", pixels)
    for _ in range(3):
        assert relative_l2(embed(made, "micro", pixels), eager) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_proxy_runs_in_graphs(dtype: torch.dtype) -> None:
    name = "vim-tiny-proxy"
    model = engine(CATALOGUE[name], dtype, random=True)._models[name]
    assert model._graphs is not None
    captured = len(model._graphs.own)
    assert captured >= len(model._graphs.own.buckets)
    pixels = images(5, 224)
    found = model.embed(pixels)
    assert len(model._graphs.own) == captured  # warm-up had captured what this needs
    model._graphs = None
    bar = {torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert relative_l2(found, model.embed(pixels)) < bar


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["vim-tiny", "vim-tiny-proxy"])
def test_full_size_against_float32_on_the_cpu(name: str, dtype: torch.dtype) -> None:
    from vim_embed import load_model

    pixels = images(4, 224)
    expected = load_model(name, random_weights=True, device="cpu").embed(pixels)
    found = embed(engine(CATALOGUE[name], dtype, random=True), name, pixels)
    bar = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert relative_l2(found, expected) < bar


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["vim-tiny", "vim-tiny-proxy"])
def test_exact_mode_gives_the_same_bytes(name: str, dtype: str) -> None:
    """Alone, in sevens and in 64s, in the engine (what HTTP calls) and in process."""
    from vim_embed import load_model

    made = engine(CATALOGUE[name], getattr(torch, dtype), random=True)
    model = load_model(name, random_weights=True, device="cuda", dtype=dtype)
    if name == "vim-tiny":  # other libraries promise nothing: row by row is right for them
        assert model.info.exact_rows == 32, model.info.exact_reason
    pixels = images(64, 224)
    for pooling in ("mean", "cls"):
        exact = EmbedOptions(pooling=pooling, exact=True)
        whole = embed(made, name, pixels, exact)
        sevens = [embed(made, name, pixels[i : i + 7], exact) for i in range(0, 64, 7)]
        alone = [embed(made, name, pixels[i : i + 1], exact) for i in range(64)]
        assert np.concatenate(sevens).tobytes() == whole.tobytes()
        assert np.concatenate(alone).tobytes() == whole.tobytes()
        assert model.embed(pixels, pooling, exact=True).tobytes() == whole.tobytes()
        assert model.embed(pixels[5], pooling, exact=True).tobytes() == whole[5:6].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "patch-mean"])
def test_blocks_of_the_fused_forward(pooling: str, dtype: str) -> None:
    from vim_embed import load_model

    bar = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    expected = load_model("vim-tiny", random_weights=True, device="cpu").embed_layers(
        images(3, 224), pooling=pooling
    )
    model = load_model("vim-tiny", random_weights=True, device="cuda", dtype=dtype)
    assert model.info.backend == "fused", model.info.backend_reason
    for pixels, rows in ((images(3, 224), 3), (images(3, 224)[:1], 1)):
        found = model.embed_layers(pixels, pooling=pooling)
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert relative_l2(found[name], value[:rows]) < 1.5 * bar, name
        last = found["last_hidden_state"]
        assert relative_l2(last, model.embed(pixels, pooling)) < bar
    whole = model.embed_layers(images(40, 224), pooling=pooling, exact=True)
    alone = model.embed_layers(images(40, 224)[33], pooling=pooling, exact=True)
    assert all(alone[name].tobytes() == whole[name][33:34].tobytes() for name in whole)


def test_staging_overlaps_without_mixing_batches() -> None:
    made = engine(MICRO, torch.float32)
    queue = BatchQueue(made, queue_rows=100_000, queue_bytes=10**10)
    queue.start()
    random = np.random.default_rng(1)
    pixels = images(400, 64)
    expected = eagerly(made, "micro", pixels)
    jobs = [random.integers(0, 400, random.integers(1, 60)) for _ in range(300)]
    requests = [queue.submit(EmbedRequest("micro", pixels[rows], MEAN)) for rows in jobs]
    for rows, request in zip(jobs, requests, strict=True):
        found = request.future.result(60).outputs[EMBEDDING]
        error = np.linalg.norm(found - expected[rows], axis=1)
        assert (error <= 1e-5 * np.linalg.norm(expected[rows], axis=1)).all()
    assert queue.drain(30)


def test_running_out_of_memory_halves_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    made = engine(CATALOGUE["vim-tiny"], torch.float16, random=True)
    pixels = images(256, 448)
    expected = embed(made, "vim-tiny", pixels)
    made._models["vim-tiny"]._graphs = None
    staged = made.stage("vim-tiny", [pixels], MEAN)

    def reserved(rows: int) -> int:
        """Bytes, with the forward of so many rows."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        embed(made, "vim-tiny", pixels[:rows])
        return torch.cuda.max_memory_reserved()

    gc.collect()  # graphs of other tests
    enough_for_four = 1.2 * reserved(4)
    assert reserved(256) > enough_for_four
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(enough_for_four / torch.cuda.mem_get_info()[1])
    try:
        found = made.run(staged)[EMBEDDING]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "halving the batch" in caplog.text
    assert relative_l2(found, expected) < 2e-3


def test_forwards_that_are_launched_one_behind_the_other_keep_their_rows() -> None:
    made = engine(MICRO, torch.float16)
    assert made.at_once == 2
    pixels = [images(32, 64, seed) for seed in range(8)]
    expected = [embed(made, "micro", each) for each in pixels]
    queue = BatchQueue(made, queue_rows=10_000, queue_bytes=10**9)
    queue.start()
    for _ in range(20):
        requests = [queue.submit(EmbedRequest("micro", each, MEAN)) for each in pixels]
        for request, right in zip(requests, expected, strict=True):
            np.testing.assert_array_equal(request.future.result(60).outputs[EMBEDDING], right)
    queue.drain(20)


def test_models_load_again_and_again_while_another_serves() -> None:
    """More captures than torch deals out streams: none is the one that batches are copied on."""
    made = engine(MICRO, torch.float16)
    pixels = images(300, 64)  # more than a few bytes, so that they go by the copy stream
    queue = BatchQueue(made, queue_rows=100_000, queue_bytes=10**10)
    queue.start()
    right = queue.submit(EmbedRequest("micro", pixels, MEAN)).future.result(60).outputs[EMBEDDING]
    done = threading.Event()
    answers: list[NDArray[np.float32]] = []

    def ask() -> None:
        while not done.is_set():
            request = queue.submit(EmbedRequest("micro", pixels, MEAN))
            answers.append(request.future.result(60).outputs[EMBEDDING])

    asking = threading.Thread(target=ask)
    asking.start()
    made._entries["other"] = CatalogueEntry(name="other", kind="vim", path=MICRO.path)
    for _ in range(5):  # eight graphs each
        made.load_model("other")
        assert made.status()["other"].state == "ready", made.status()["other"].reason
        made.unload("other")
    done.set()
    asking.join(60)
    assert queue.problems == {}
    assert all(relative_l2(found, right) < 2e-3 for found in answers)
    assert queue.drain(30)


def test_garbage_with_graphs_in_it_does_not_break_a_capture() -> None:
    """As `del model` leaves them: a graph is destroyed whenever the collector comes by."""

    class Model:
        def __init__(self, capture: CudaCapture) -> None:
            self.myself = self
            self.captured = capture(twice, pixels, MEAN)

    def twice(images: torch.Tensor, options: EmbedOptions) -> dict[str, torch.Tensor]:
        assert [[] for _ in range(1000)]  # the collector counts new objects
        return {EMBEDDING: images * 2}

    pixels = torch.ones(4, 3, 8, 8, device="cuda")
    before = gc.get_threshold()
    gc.set_threshold(50, 1, 1)
    try:
        for _ in range(10):
            Model(CudaCapture())
            captured = CudaCapture()(twice, pixels, MEAN)
            captured.replay()
            assert bool((captured.outputs[EMBEDDING] == 2).all())
    finally:
        gc.set_threshold(*before)
    assert gc.isenabled()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_two_devices_give_the_numbers_of_one() -> None:
    first = engine(MICRO, torch.float16)
    second = TorchEngine([MICRO], EngineOptions(torch.device("cuda", 1), "float16", batch_rows=32))
    second.load()
    pixels = images(32, 64)
    found, expected = embed(second, "micro", pixels), embed(first, "micro", pixels)
    assert relative_l2(found, expected) < 2e-3


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("rows", [7, 64, 200])
def test_in_process_every_row_is_its_own(dtype: str, rows: int) -> None:
    """Chunks are staged in pieces, beside the ones that compute, from memory that is read-only."""
    model = load_model("vim-tiny", device="cuda", dtype="float32", random_weights=True)
    pixels: PixelArray = images(rows, 224, rows)
    if dtype != "uint8":
        pixels = (pixels.astype(np.float32) / 127.5 - 1).astype(dtype)
    pixels.flags.writeable = False
    for _ in range(3):
        found = model.embed(pixels)
    expected = np.concatenate([model.embed(pixels[i : i + 1]) for i in range(rows)])
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 1e-5
    apart = np.linalg.norm(expected[1:] - expected[:-1], axis=1)
    assert (apart > 1e-4 * np.linalg.norm(expected[1:], axis=1)).all(), "a swapped row would show"


def graphs_of(model: Embedder) -> SideBySide:
    assert model._graphs is not None
    return model._graphs


def beside_of(model: Embedder) -> Beside:
    beside = graphs_of(model).beside
    assert beside is not None
    return beside


def alone(model: Embedder, pixels: PixelArray) -> NDArray[np.float32]:
    """`embed` with one chunk behind the other."""
    graphs, beside = graphs_of(model), beside_of(model)
    graphs.beside = None
    try:
        return model.embed(pixels)
    finally:
        graphs.beside = beside


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["vim-tiny", "vim-base"])
@pytest.mark.parametrize("wire", ["uint8", "float32"])
def test_chunks_side_by_side_give_the_same_bytes(name: str, dtype: str, wire: str) -> None:
    """vim-base goes as two halves besides, on two streams for each chunk."""
    model = load_model(name, device="cuda", dtype=dtype, random_weights=True)
    rows = images(64 * 5 + 50, 224)
    pixels: PixelArray = rows if wire == "uint8" else (rows / 127.5 - 1).astype(np.float32)
    expected = alone(model, pixels)
    assert len(beside_of(model).graphs) == 0
    for _ in range(4):
        assert model.embed(pixels).tobytes() == expected.tobytes()
    assert len(beside_of(model).graphs) > 0, "no chunk went beside another"


def test_callers_at_once_get_their_own_rows() -> None:
    model = load_model("vim-tiny", device="cuda", dtype="float16", random_weights=True)
    batches = [images(rows, 224, rows) for rows in (1, 40, 64, 65, 128, 200)]
    expected = [alone(model, batch) for batch in batches]

    def ask(index: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream() if index % 2 else None):  # type: ignore[no-untyped-call]
            found = model.embed(batches[index % 6])
        return found.tobytes() == expected[index % 6].tobytes()

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(90)))


def test_memory_that_is_too_short_for_two(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model("vim-tiny", device="cuda", dtype="float16", random_weights=True)
    pixels = images(200, 224)
    expected = alone(model, pixels)

    def short(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(beside_of(model).graphs, "_capture", short)
    for _ in range(2):
        assert model.embed(pixels).tobytes() == expected.tobytes()
    assert graphs_of(model).beside is None
    assert [r.message for r in caplog.records if "too short for two" in r.message]


def test_streams_of_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        streams, "_FREE", defaultdict(list)
    )  # none of another test's come back here
    device = torch.device("cuda")
    mine = [own_stream(device) for _ in range(70)]
    handles = [stream.cuda_stream for stream in mine]
    assert len(set(handles)) == 70
    assert torch.cuda.default_stream().cuda_stream not in handles
    del mine[:35]
    again = [own_stream(device) for _ in range(35)]
    assert {stream.cuda_stream for stream in again} == set(handles[:35]), "they are handed on"
    with torch.cuda.stream(again[0]):
        assert bool((torch.ones(10, device=device) * 2 == 2).all())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("size", [(224, 224), (70, 90)])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pixels_rounded_on_the_host_give_the_same_bytes(
    size: tuple[int, int], pooling: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In process, half precision takes float32 pixels rounded; a service takes them as they are."""
    model = load_model("vim-tiny", device="cuda", dtype=dtype, random_weights=True)
    pixels = np.random.default_rng().normal(0, 2, (150, 3, *size)).astype(np.float32)
    rounded, ways = model._staging.rounded, []

    def watched(rows: PixelArray, how: Rounding) -> StagedPixels | None:
        staged = rounded(rows, how)
        ways.append(staged is not None)
        return staged

    monkeypatch.setattr(model._staging, "rounded", watched)
    found = model.embed(pixels, pooling)
    assert ways
    assert all(ways)
    monkeypatch.setattr(model._staging, "rounded", lambda rows, how: None)
    assert model.embed(pixels, pooling).tobytes() == found.tobytes()
    made = model.run(torch.from_numpy(pixels).cuda(), EmbedOptions(pooling=pooling))[EMBEDDING]
    assert relative_l2(found, made.numpy()) < (2e-3 if dtype == "float16" else 2e-2)


@pytest.mark.parametrize("model_dtype", ["float32", "float16"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("rows", "bad"), [(1, [0]), (80, [79]), (300, [12, 13]), (300, [220])])
def test_in_process_rows_that_are_not_finite_are_named(
    dtype: type, rows: int, bad: list[int], model_dtype: str
) -> None:
    model = load_model("micro", DATA / "vim_micro.pth", device="cuda", dtype=model_dtype)
    pixels: PixelArray = np.random.default_rng().normal(size=(rows, 3, 64, 64)).astype(dtype)
    assert np.isfinite(model.embed(pixels)).all()
    for row, value in zip(bad, (np.nan, -np.inf), strict=False):
        pixels[row, 2, 63, 63] = value
    for call in (model.embed, model.embed_layers):
        with pytest.raises(PixelError, match=re.escape(f"rows {bad} hold NaN")):
            call(pixels)
