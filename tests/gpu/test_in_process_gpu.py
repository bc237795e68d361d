"""A model on a real CUDA device, in a program that does other things with torch."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vim_embed import Embedder, load_model
from vim_embed.inference.beside import SideBySide
from vim_embed.kernels.constants import Constants
from vim_embed.models.vim_fused import FusedVim
from vim_embed.types.model_info import EMBEDDING, EmbedOptions
from vim_embed.types.pixels import PixelError

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")


def loaded(name: str = "vim-tiny", dtype: str = "float16", **options: Any) -> Embedder:
    chosen: dict[str, Any] = {"device": "cuda", "random_weights": True, **options}
    return load_model(name, dtype=dtype, **chosen)


def images(rows: int, height: int = 224, width: int = 224) -> NDArray[np.uint8]:
    random = np.random.default_rng(rows)
    return random.integers(0, 256, (rows, 3, height, width), dtype=np.uint8)


def floats(rows: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (rows, 3, 224, 224)).astype(np.float32)


def graphs_of(model: Embedder) -> SideBySide:
    assert model._graphs is not None
    return model._graphs


def fused_of(model: Embedder) -> FusedVim:
    assert isinstance(model._fused, FusedVim), model.info.backend_reason
    return model._fused


@contextmanager
def set_for_a_while(
    set_to: Callable[[Any], object], value: object, before: object
) -> Iterator[None]:
    set_to(value)
    try:
        yield
    finally:
        set_to(before)


def with_tf32() -> AbstractContextManager[None]:
    return set_for_a_while(torch.set_float32_matmul_precision, "high", "highest")


def with_newer_tf32() -> AbstractContextManager[None]:
    matmul = torch.backends.cuda.matmul
    set_to = partial(setattr, matmul, "fp32_precision")
    return set_for_a_while(set_to, "tf32", matmul.fp32_precision)


AROUND: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "autocast": lambda: torch.autocast("cuda", dtype=torch.float16),
    "TF32": with_tf32,
    "TF32 by the newer setting": with_newer_tf32,
    "the default device": lambda: CUDA,
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
}
KINDS: dict[str, Callable[[], Embedder]] = {
    "split": partial(loaded, dtype="float32"),
    "ieee": partial(loaded, dtype="float32-ieee"),
    "half": partial(loaded, dtype="float16"),
    "torch": partial(loaded, dtype="float32", backend="torch"),
    "encoder": partial(loaded, "vim-tiny-proxy", dtype="float32"),
}


def everything(model: Embedder) -> list[bytes]:
    rows = images(5)
    found = [model.embed(rows), model.embed(rows, "cls"), model.embed(rows, exact=True)]
    return [each.tobytes() for each in (*found, *model.embed_layers(rows[:2]).values())]


@cache
def plainly(kind: str) -> list[bytes]:
    return everything(KINDS[kind]())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("around", AROUND)
def test_what_is_set_around_it_changes_no_byte(around: str, kind: str) -> None:
    """Neither where it is loaded and captured within, nor where it is only called there."""
    expected, called = plainly(kind), KINDS[kind]()
    with AROUND[around]():
        made = KINDS[kind]()
        found = {"made within": everything(made), "called within": everything(called)}
    found |= {"made within, called after": everything(made), "called again": everything(called)}
    assert {when: each == expected for when, each in found.items()} == dict.fromkeys(found, True)


def test_a_cpu_s_model_beside_a_default_device() -> None:
    plain = loaded("vim-micro", "float32", device="cpu", random_weights=False)
    rows = images(3, 64, 64)
    expected = plain.embed(rows)
    with CUDA:
        again = loaded("vim-micro", "float32", device="cpu", random_weights=False)
        assert again.embed(rows).tobytes() == expected.tobytes()
        assert plain.embed(rows).tobytes() == expected.tobytes()


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New memory is full of NaN, and of the largest integers."""
    settings: Any = torch.utils.deterministic
    before, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    settings.fill_uninitialized_memory = before


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("name", ["vim-tiny", "vim-base"])
@pytest.mark.parametrize("dtype", ["float32", "float32-ieee", "float16", "bfloat16"])
def test_memory_that_nobody_wrote_is_not_read(
    name: str, dtype: str, request: pytest.FixtureRequest
) -> None:
    plain = loaded(name, dtype)
    cases = [(images(rows), pooling) for rows in (1, 3, 64, 100) for pooling in ("mean", "cls")]
    expected = [plain.embed(rows, pooling) for rows, pooling in cases]
    layers = plain.embed_layers(images(3))
    assert all(np.isfinite(each).all() for each in expected)
    request.getfixturevalue("poisoned")
    model = loaded(name, dtype)
    for (rows, pooling), right in zip(cases, expected, strict=True):
        assert model.embed(rows, pooling).tobytes() == right.tobytes(), (len(rows), pooling)
    for layer, found in model.embed_layers(images(3)).items():  # convolutions differ in last bits
        assert np.abs(found - layers[layer]).max() <= 2e-2 * np.abs(layers[layer]).max(), layer


def test_a_thread_that_has_not_called_cuda_computes() -> None:
    """Its memory comes from torch's cache, and its first call of CUDA is a kernel of ours."""
    model, options = loaded(), EmbedOptions()
    pixels = torch.from_numpy(images(3)).to(CUDA)
    expected = model.compute(pixels, options)[EMBEDDING].cpu()
    torch.cuda.synchronize()
    found: list[torch.Tensor | BaseException] = []

    def compute() -> None:
        try:
            found.append(model.compute(pixels, options)[EMBEDDING])
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join(60)
    (computed,) = found
    assert isinstance(computed, torch.Tensor), computed
    torch.cuda.synchronize()
    assert torch.equal(computed.cpu(), expected)


def test_a_model_s_memory_is_freed_with_it() -> None:
    """At once: garbage is not collected meanwhile."""

    def used() -> None:
        model = loaded()
        model.embed(images(200))
        model.embed(floats(130))
        known.extend(weakref.ref(kept) for kept in (model, fused_of(model), model.module))

    known: list[weakref.ref[Any]] = []
    used()
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    gc.disable()
    try:
        used()
        assert [ref() for ref in known] == [None] * 6
        assert torch.cuda.memory_allocated() <= before + 8 * 2**20  # cuBLAS's for other streams
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@pytest.mark.parametrize("name", ["vim-tiny", "vim-base"])
def test_a_capture_that_runs_out_of_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """vim-base runs out between its two halves, on the first of two streams."""
    plain = loaded(name)
    rows = images(64)
    expected = plain.embed(rows, "max")
    model, forward, halves = loaded(name), FusedVim._forward, [0]

    def short(self: FusedVim, *given: Any, **named: Any) -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            halves[0] += 1
            if name == "vim-tiny" or halves[0] % 2 == 0:
                raise torch.OutOfMemoryError("no memory is left")
        return forward(self, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(FusedVim, "_forward", short)
        for _ in range(3):
            with pytest.raises(torch.OutOfMemoryError, match="no memory is left"):
                model.embed(rows, "max")
    assert halves[0] > 0
    assert not torch.cuda.is_current_stream_capturing()
    assert model.embed(rows, "max").tobytes() == expected.tobytes()
    assert torch.equal(torch.ones(1000, device=CUDA).cpu(), torch.ones(1000))


def test_a_graph_keeps_the_tables_that_it_reads() -> None:
    """Those of the sizes that came before are forgotten, and their memory is somebody else's."""
    model = loaded()
    fused_of(model)._frame._starts = Constants(most_bytes=1)
    rows = images(40)
    expected = model.embed(rows, "patch-mean")
    for size in (208, 240, 96):
        model.embed(images(3, size, size), image_size=size)
    assert len(fused_of(model)._frame._starts) == 1
    taken = [torch.full((size,), torch.nan, device=CUDA) for size in (200, 38000, 40000) * 100]
    assert model.embed(rows, "patch-mean").tobytes() == expected.tobytes()
    assert all(bool(each.isnan().all()) for each in taken)


def test_graphs_that_come_and_go_on_many_streams() -> None:
    model = loaded()
    graphs_of(model).own._limit = 2
    sizes = (224, 192, 160, 128)
    batches = [images(rows, size, size) for rows, size in zip((60, 50, 40, 70), sizes, strict=True)]

    def embedded(index: int) -> NDArray[np.float32]:
        return model.embed(batches[index], image_size=sizes[index])

    expected = [embedded(index) for index in range(4)]

    def ask(turn: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            found = embedded(turn % 4)
            junk = torch.full((3, 3, 224, 224), torch.nan, device=CUDA)
            return found.tobytes() == expected[turn % 4].tobytes() and bool(junk.isnan().all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(80)))


def test_a_refused_array_leaves_nothing_behind() -> None:
    """Its other chunks are still on their way when the next array comes, or the model goes."""
    pixels, bad = floats(200), floats(300, 1)
    expected = loaded().embed(pixels)
    bad[0, 0, 0, 0] = np.nan
    for _ in range(3):
        model = loaded()
        for _ in range(5):
            with pytest.raises(PixelError, match=r"rows \[0\] hold NaN"):
                model.embed(bad)
            assert model.embed(pixels).tobytes() == expected.tobytes()
        with pytest.raises(PixelError, match=r"rows \[0\] hold NaN"):
            model.embed(bad)
        del model
        junk = [torch.ones(2**22, device=CUDA) for _ in range(20)]
        assert all(bool((each == 1).all()) for each in junk)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_arrays_of_every_kind(dtype: str, tmp_path: Path) -> None:
    model = loaded(dtype=dtype)
    plain = floats(70)
    expected = model.embed(plain)
    np.save(tmp_path / "images.npy", plain)
    on_device = torch.from_numpy(plain).to(CUDA)
    kinds: dict[str, Any] = {
        "big-endian": plain.astype(">f4"),
        "float64": plain.astype(np.float64),
        "in columns": np.asfortranarray(plain),
        "backwards": plain[:, :, ::-1].copy()[:, :, ::-1],
        "in a file": np.load(tmp_path / "images.npy", mmap_mode="r"),
        "on the device": on_device,
        "on the device, trained": on_device.clone().requires_grad_(),
        "on the device, in columns": on_device.mT.contiguous().mT,
        "rows on the device": list(on_device),
    }
    for kind, values in kinds.items():
        assert model.embed(values).tobytes() == expected.tobytes(), kind
    halves = on_device.bfloat16()
    assert model.embed(halves).tobytes() == model.embed(halves.float()).tobytes()


def test_its_device_has_a_number() -> None:
    assert loaded().device == torch.device("cuda", torch.cuda.current_device())


@needs_two
def test_cuda_stays_the_device_that_it_was() -> None:
    """Whatever device is current in the thread that computes; first it is the second."""
    rows = images(200)
    expected = loaded().embed(rows)
    before = torch.cuda.current_device()
    torch.cuda.set_device(1)
    try:
        model = loaded()
    finally:
        torch.cuda.set_device(before)
    assert model.device == torch.device("cuda:1")
    with ThreadPoolExecutor(1) as pool:
        found = [model.embed(rows), pool.submit(model.embed, rows).result()]
    assert [each.tobytes() for each in found] == [expected.tobytes()] * 2
    assert torch.cuda.current_device() == before


@needs_two
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_two_models_on_two_devices_at_once(dtype: str) -> None:
    models = [loaded(dtype=dtype, device=f"cuda:{index}") for index in range(2)]
    arrays: list[NDArray[Any]] = [floats(150), images(150)]
    expected = [[model.embed(array) for array in arrays] for model in models]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*expected, strict=True))

    def ask(turn: int) -> bool:
        model, array = turn % 2, turn // 2 % 2
        return models[model].embed(arrays[array]).tobytes() == expected[model][array].tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(80)))
