"""Embedding over loopback: values, order, splitting and what travels with the request."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.responses import Response

from vim_embed_client import BadAnswerError, Client, ProvenanceChangedError

from .conftest import MakeClient
from .fake_service import (
    DIM,
    LAYERS,
    SIZE,
    FakeService,
    answer,
    decode,
    embed_rows,
    serve,
    wait_for,
)

Pixels = NDArray[np.float32]


def test_embeds_rows_in_their_order(client: Any, pixels: Pixels) -> None:
    result = client.embed(pixels)
    np.testing.assert_array_equal(result.embeddings, embed_rows(pixels))
    assert result.embeddings.dtype == np.float32
    assert len(result) == 10
    np.testing.assert_array_equal(np.asarray(result), result.embeddings)


def test_provenance_ids_and_timing_come_along(
    client: Any, pixels: Pixels, service: FakeService
) -> None:
    result = client.embed(pixels)
    assert result.provenance.model == "vim-tiny"
    assert result.provenance.weights_digest == "sha256:aaaa"
    assert result.provenance.random_weights is True
    assert result.provenance.exact is False
    assert result.request_ids == (service.seen[0].headers["x-request-id"],)
    assert result.server_timing == ({"queue": 1.5, "forward": 20.25, "total": 22.0},)


def test_a_split_batch_keeps_its_order_whatever_finishes_first(
    make_client: MakeClient, pixels: Pixels, service: FakeService
) -> None:
    first_may_go = threading.Event()
    service.faults.append(wait_for(first_may_go))
    progress: list[tuple[int, int]] = []

    def on_progress(done: int, total: int) -> None:
        progress.append((done, total))
        if done >= 7:
            first_may_go.set()

    client = make_client(rows_per_request=3, in_flight=2)
    result = client.embed(pixels, on_progress=on_progress)
    np.testing.assert_array_equal(result.embeddings, embed_rows(pixels))
    assert sorted(seen.rows for seen in service.seen) == [1, 3, 3, 3]
    assert progress[-1] == (10, 10)
    assert len(set(result.request_ids)) == 4
    last = next(seen for seen in service.seen if seen.rows == 1)
    assert result.request_ids[-1] == last.headers["x-request-id"]


def test_no_more_than_in_flight_requests_run_at_once(
    make_client: MakeClient, pixels: Pixels, service: FakeService
) -> None:
    reached = threading.Event()

    async def hold(service: FakeService, request: Any) -> None:
        if service.running == 3:
            reached.set()
        await wait_for(reached)(service, request)

    service.always = hold
    make_client(rows_per_request=1, in_flight=3).embed(pixels)
    assert service.most_running == 3


def test_layers_come_in_the_models_order(make_client: MakeClient, pixels: Pixels) -> None:
    result = make_client(rows_per_request=4).embed_layers(pixels, granularity="blocks")
    assert list(result) == LAYERS
    assert len(result) == len(LAYERS)
    for depth, name in enumerate(LAYERS):
        np.testing.assert_allclose(result[name], embed_rows(pixels) * (depth + 1), rtol=1e-6)
    assert len(result.request_ids) == 3


def test_options_travel_as_query_parameters(
    client: Any, pixels: Pixels, service: FakeService
) -> None:
    client.embed_layers(
        pixels,
        granularity="leaves",
        model="vim-tiny",
        pooling="cls",
        dtype="float16",
        exact=True,
        mean=(0.5, 0.5, 0.5),
        std=np.array([0.25, 0.5, 0.5], np.float32),
    )
    assert service.seen[0].query == {
        "model": "vim-tiny",
        "pooling": "cls",
        "layers": "leaves",
        "dtype": "float16",
        "exact": "true",
        "mean": "0.5,0.5,0.5",
        "std": "0.25,0.5,0.5",
    }


def test_defaults_leave_the_choice_to_the_service(
    client: Any, pixels: Pixels, service: FakeService
) -> None:
    client.embed(pixels)
    assert service.seen[0].query == {"pooling": "mean", "dtype": "float32"}


def test_float16_answers_are_returned_as_such(client: Any, pixels: Pixels) -> None:
    result = client.embed(pixels, dtype="float16")
    assert result.embeddings.dtype == np.float16
    np.testing.assert_array_equal(result.embeddings, embed_rows(pixels).astype(np.float16))


def test_uint8_pixels_use_the_mean_and_std_given(client: Any) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 3, SIZE, SIZE), dtype=np.uint8)
    half = (0.5, 0.5, 0.5)
    np.testing.assert_array_equal(client.embed(pixels), embed_rows(pixels))
    np.testing.assert_array_equal(
        client.embed(pixels, mean=half, std=half), embed_rows(pixels, mean=half, std=half)
    )


@pytest.mark.parametrize(
    ("dtype", "wire", "sent"),
    [
        ("uint8", "auto", "uint8"),
        ("float16", "auto", "float16"),
        ("float64", "auto", "float32"),
        (">f4", "auto", "float32"),
        ("float32", "float16", "float16"),
        ("float16", "float32", "float32"),
    ],
)
def test_the_dtype_on_the_wire(
    client: Any, service: FakeService, dtype: str, wire: str, sent: str
) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (3, 3, SIZE, SIZE)).astype(dtype)
    result = client.embed(pixels, wire=wire)
    assert service.seen[0].dtype == sent
    np.testing.assert_array_equal(result, embed_rows(pixels.astype(sent)))


def test_requests_state_their_length_and_kind(
    client: Any, pixels: Pixels, service: FakeService, url: str
) -> None:
    client.embed(pixels)
    headers = service.seen[0].headers
    assert int(headers["content-length"]) == 128 + pixels.nbytes
    assert "transfer-encoding" not in headers
    assert headers["content-type"] == "application/x-npy"
    assert headers["host"] == url.removeprefix("http://")
    assert "authorization" not in headers


def test_the_api_key_is_a_bearer_token(
    make_client: MakeClient,
    pixels: Pixels,
    service: FakeService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VIM_EMBED_API_KEY", "from-environment")
    make_client().embed(pixels)
    make_client(api_key="given").embed(pixels)
    tokens = [seen.headers["authorization"] for seen in service.seen]
    assert tokens == ["Bearer from-environment", "Bearer given"]


def test_paths_bytes_and_pillow_images_are_sent_encoded(
    make_client: MakeClient, service: FakeService, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    arrays = rng.integers(0, 256, (4, 20, 20, 3), dtype=np.uint8)
    images = [Image.fromarray(array) for array in arrays]
    images[3] = images[3].convert("CMYK")
    images[0].save(tmp_path / "a.png")
    images[1].save(tmp_path / "b.webp", lossless=True)
    mixed = [tmp_path / "a.png", (tmp_path / "b.webp").read_bytes(), images[2], images[3]]
    result = make_client(rows_per_request=3).embed_images(mixed)
    expected = [np.asarray(i.convert("RGB").resize((SIZE, SIZE))) for i in images]
    np.testing.assert_array_equal(result, embed_rows(np.stack(expected).transpose(0, 3, 1, 2)))
    names = sorted((seen.filenames for seen in service.seen), key=len)
    assert names == [["0.tiff"], ["a.png", "1", "2.png"]]


def test_one_image_needs_no_list(client: Any, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "one.png")
    result = client.embed_images(str(tmp_path / "one.png"))
    pixels = decode((tmp_path / "one.png").read_bytes())[None]
    np.testing.assert_array_equal(result, embed_rows(pixels))


def test_a_service_that_changes_its_weights_meanwhile_is_refused(
    make_client: MakeClient, pixels: Pixels, service: FakeService
) -> None:
    async def restart(service: FakeService, request: Any) -> None:
        service.provenance = service.provenance | {"Weights-Digest": "sha256:cccc"}

    async def nothing(service: FakeService, request: Any) -> None:
        pass

    service.faults.extend([nothing, restart])
    with pytest.raises(ProvenanceChangedError, match="weights_digest"):
        make_client(rows_per_request=5, in_flight=1).embed(pixels)


def test_replicas_on_several_devices_of_one_kind_may_share_a_batch(
    make_client: MakeClient, pixels: Pixels, service: FakeService
) -> None:
    async def move(service: FakeService, request: Any) -> None:
        service.provenance = service.provenance | {"Device": f"cuda:{len(service.seen)}"}

    service.always = move
    assert len(make_client(rows_per_request=2).embed(pixels)) == 10


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (_npy(np.zeros((9, DIM), "f4")), "application/x-npy", "10 rows were sent"),
        (_npy(np.zeros(10, "f4")), "application/x-npy", "10 rows were sent"),
        (_npy(np.zeros((10, DIM), "f4"))[:-1], "application/x-npy", "not a sound npy"),
        (b"<html>", "text/html", "is text/html, not an array"),
        (b"", "application/vnd.safetensors", "not a sound safetensors"),
    ],
)
def test_answers_that_do_not_fit_are_refused(
    client: Any, pixels: Pixels, service: FakeService, content: bytes, kind: str, message: str
) -> None:
    service.faults.append(answer(content, kind))
    with pytest.raises(BadAnswerError, match=message):
        client.embed(pixels)
    assert len(service.seen) == 1


def test_other_routes(client: Any) -> None:
    assert client.models()["default"] == "vim-tiny"
    assert client.model("vim-tiny")["dim"] == DIM
    assert client.layers("vim-tiny", "leaves") == LAYERS
    assert client.live() == {"status": "live"}
    assert client.ready()["models"] == {"vim-tiny": "ready"}


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"{}", b"3"])
def test_other_routes_of_something_else(
    make_client: MakeClient, service: FakeService, url: str, content: bytes
) -> None:
    async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
        await Response(content, media_type="application/json")(scope, receive, send)

    with serve(elsewhere) as other, pytest.raises(BadAnswerError, match="vim-embed service"):
        make_client(base_url=other).layers("vim-tiny")


class _Counted(httpx.SyncByteStream):
    def __init__(self, stream: Any, sizes: list[int]) -> None:
        self._stream = stream
        self._sizes = sizes

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._sizes.append(len(chunk))
            yield chunk


class _CountingTransport(httpx.HTTPTransport):
    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self._sizes = sizes

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.stream = _Counted(request.stream, self._sizes)
        return super().handle_request(request)


def test_large_bodies_leave_in_chunks_of_at_most_a_mebibyte(url: str) -> None:
    sizes: list[int] = []
    pixels = np.random.default_rng(0).integers(0, 256, (9, 3, 600, 600), dtype=np.uint8)
    with Client(url, transport=_CountingTransport(sizes)) as client:
        np.testing.assert_array_equal(client.embed(pixels), embed_rows(pixels))
    assert sum(sizes) == 128 + pixels.nbytes
    assert max(sizes) <= 1 << 20


def test_proxies_do_not_come_between_a_client_and_its_own_machine(
    make_client: MakeClient, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert make_client().live() == {"status": "live"}
