"""Bad and odd bodies under /v2: always `{"error": "text"}` with the right status, never a 5xx of
the framing; and every refusal of the service in that shape too."""

from __future__ import annotations

import gzip
import json
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.serving import NPY, from_npy, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import Outputs, Staged
from vim_embed.errors import InvalidInput, MalformedRequest
from vim_embed.http.app import create_app
from vim_embed.http.body.arena import Arena
from vim_embed.http.body.reading import Limits
from vim_embed.http.body.workspace import Workspace
from vim_embed.http.formats.v2_messages import DATATYPES
from vim_embed.http.formats.v2_wire import Output, infer_answer, read_infer
from vim_embed.settings import Settings

LIMIT = 100_000
WORKSPACE = Workspace(Arena.private(1 << 24))
LENGTH = "Inference-Header-Content-Length"
GOOD = np.arange(2 * 3 * 8 * 8, dtype=np.uint8).reshape(2, 3, 8, 8)
INFER = "/v2/models/arithmetic/infer"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    options = Settings(max_body_bytes=LIMIT, max_rows=64, max_image_size=64, body_timeout=1)
    with running(create_app(options, ArithmeticEngine())) as url:
        yield url


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30) as client:
        yield client


def tensor(**changes: object) -> dict[str, Any]:
    """The description of GOOD as a binary tensor; a change to None takes a key away."""
    made = {
        "name": "pixel_values",
        "shape": [2, 3, 8, 8],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": GOOD.nbytes},
        **changes,
    }
    return {key: value for key, value in made.items() if value is not None}


def framed(head: object, raw: bytes = b"", shift: int = 0) -> tuple[bytes, dict[str, str]]:
    """A body of JSON and raw bytes, and the header that says where the JSON ends."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return text + raw, {LENGTH: str(len(text) + shift)}


def data(value: object, **changes: object) -> dict[str, Any]:
    return {"inputs": [tensor(parameters=None, data=value, **changes)]}


RAW = GOOD.tobytes()
ASK = {"inputs": [tensor()]}
FLAT = GOOD.reshape(-1).tolist()
JSON_ONLY: dict[str, str] = {}
BAD: dict[str, tuple[int, str, tuple[bytes, dict[str, str]]]] = {
    "nothing": (400, "body", (b"", {})),
    "no JSON": (400, "JSON", (b"\x00\x01", {})),
    "JSON cut short": (400, "JSON", framed(json.dumps(ASK).encode()[:-3], RAW)),
    "a list": (400, "body", framed([1])),
    "no inputs": (400, "inputs", framed({})),
    "two inputs": (422, "one input", framed({"inputs": [tensor(), tensor()]}, RAW + RAW)),
    "another name": (422, "pixel_values", framed({"inputs": [tensor(name="x")]}, RAW)),
    "no length header": (400, "promises 384", (json.dumps(ASK).encode(), {})),
    "length beyond the body": (400, "before compression", framed(ASK, RAW, shift=1000)),
    "length one too short": (400, "JSON", framed(ASK, RAW, shift=-1)),
    "length one too long": (400, "JSON", framed(ASK, RAW, shift=1)),
    "length no number": (400, "number of bytes", (RAW, {LENGTH: "12a"})),
    "length negative": (400, "number of bytes", (RAW, {LENGTH: "-1"})),
    "length huge": (400, "number of bytes", (RAW, {LENGTH: "9" * 5000})),
    "raw cut short": (400, "383 follow", framed(ASK, RAW[:-1])),
    "raw too long": (400, "385 follow", framed(ASK, RAW + b"x")),
    "lying size": (
        400,
        "promises 999",
        framed({"inputs": [tensor(parameters={"binary_data_size": 999})]}, RAW),
    ),
    "negative size": (
        400,
        "greater than or equal to 0",
        framed({"inputs": [tensor(parameters={"binary_data_size": -384})]}, RAW),
    ),
    "size of text": (
        400,
        "integer",
        framed({"inputs": [tensor(parameters={"binary_data_size": "384"})]}, RAW),
    ),
    "shape of another size": (400, "shape", framed({"inputs": [tensor(shape=[3, 3, 8, 8])]}, RAW)),
    "negative shape": (400, "shape", framed({"inputs": [tensor(shape=[-2, -3, 8, 8])]}, RAW)),
    "zero rows": (
        400,
        "shape",
        framed({"inputs": [tensor(shape=[0, 3, 8, 8], parameters={"binary_data_size": 0})]}),
    ),
    "huge shape": (400, "64 bits", framed({"inputs": [tensor(shape=[10**30, 3, 8, 8])]}, RAW)),
    "fractional shape": (400, "shape", framed({"inputs": [tensor(shape=[2.5, 3, 8, 8])]}, RAW)),
    "no shape": (400, "shape", framed({"inputs": [tensor(shape=None)]}, RAW)),
    "flat shape": (422, "1 dimensions", framed({"inputs": [tensor(shape=[384])]}, RAW)),
    "channels last": (422, "are last", framed({"inputs": [tensor(shape=[2, 8, 8, 3])]}, RAW)),
    "BYTES": (
        422,
        "UINT8",
        framed(
            {"inputs": [tensor(datatype="BYTES", shape=[1], parameters={"binary_data_size": 8})]},
            struct.pack("<I", 4) + b"abcd",
        ),
    ),
    "FP64": (422, "FP32", framed({"inputs": [tensor(datatype="FP64", shape=[1, 3, 4, 4])]}, RAW)),
    "BF16": (422, "FP32", framed({"inputs": [tensor(datatype="BF16", shape=[1, 3, 8, 8])]}, RAW)),
    "no such datatype": (422, "FP32", framed({"inputs": [tensor(datatype="uint8")]}, RAW)),
    "datatype of another width": (
        400,
        "FP32 is 1536 bytes",
        framed({"inputs": [tensor(datatype="FP32")]}, RAW),
    ),
    "data and raw": (400, "not both", framed({"inputs": [tensor(data=FLAT)]}, RAW)),
    "neither": (400, "either", framed({"inputs": [tensor(parameters=None)]})),
    "shared memory": (
        400,
        "shared_memory_region",
        framed({"inputs": [tensor(parameters={"shared_memory_region": "r"})]}),
    ),
    "data too short": (400, "383", framed(data(FLAT[:-1]))),
    "data nested otherwise": (400, "nested", framed(data(GOOD.reshape(2, 8, 8, 3).tolist()))),
    "data ragged": (422, "regular", framed(data([[1, 2], [3]]))),
    "data of text": (422, "numbers", framed(data(["a"] * 384))),
    "data a number": (422, "nested", framed(data(7))),
    "data an object": (422, "numbers", framed(data({"a": 1}))),
    "data out of range": (422, "255", framed(data([256] * 384))),
    "data not finite": (422, "NaN", framed(data([float("nan")] * 384, datatype="FP32"))),
    "data beyond FP16": (422, "infinite", framed(data([1e30] * 384, datatype="FP16"))),
    "pooling": (422, "mean, cls", framed({**ASK, "parameters": {"pooling": "max"}}, RAW)),
    "layers": (422, "blocks", framed({**ASK, "parameters": {"layers": "some"}}, RAW)),
    "misspelt parameter": (422, "poolin", framed({**ASK, "parameters": {"poolin": "cls"}}, RAW)),
    "exact": (422, "exact", framed({**ASK, "parameters": {"exact": "perhaps"}}, RAW)),
    "timeout": (422, "timeout", framed({**ASK, "parameters": {"timeout": -1}}, RAW)),
    "many outputs": (
        400, "10000 values",
        framed({**ASK, "outputs": [{"a": n} for n in range(6_000)]}, RAW),
    ),
    "an output twice": (
        422, "twice", framed({**ASK, "outputs": [{"name": "embedding"}] * 2}, RAW)
    ),
    "a key twice": (400, "twice", framed(b'{"inputs": [], "inputs": []}')),
    "lists among numbers and brackets": (
        422, "regular", framed({**data([1, 2, [], [3, 4]] + [0] * 380), "id": "["})
    ),
    "lists among numbers": (422, "regular", framed(data([1, 2, [], [3, 4]] + [0] * 380))),
    "endless timeout": (400, "64 bits", framed({**ASK, "parameters": {"timeout": 10**400}}, RAW)),
    "dtype": (422, "dtype", framed({**ASK, "parameters": {"dtype": "BF16"}}, RAW)),
    "mean": (400, "three numbers", framed({**ASK, "parameters": {"mean": "1,2"}}, RAW)),
    "std": (422, "positive", framed({**ASK, "parameters": {"std": "1,2,0"}}, RAW)),
    "no such output": (422, "embedding", framed({**ASK, "outputs": [{"name": "layers.99"}]}, RAW)),
    "an output of another granularity": (
        422,
        "no such outputs",
        framed({**ASK, "outputs": [{"name": "x"}], "parameters": {"layers": "all"}}, RAW),
    ),
    "classification": (
        400,
        "classification",
        framed({**ASK, "outputs": [{"name": "x", "parameters": {"classification": 3}}]}, RAW),
    ),
    "too many rows": (
        413,
        "65 rows",
        framed(
            {"inputs": [tensor(shape=[65, 3, 8, 8], parameters={"binary_data_size": 65 * 192})]},
            bytes(65 * 192),
        ),
    ),
    "too large": (413, "100000 bytes", (bytes(LIMIT + 1), {})),
    "brotli": (415, "gzip, deflate", (RAW, {"Content-Encoding": "br"})),
    "not gzip": (400, "not gzip", (RAW, {"Content-Encoding": "gzip"})),
    "gzip cut short": (400, "cut short", (gzip.compress(RAW)[:-9], {"Content-Encoding": "gzip"})),
    "bytes after gzip": (400, "follow", (gzip.compress(RAW) + b"x", {"Content-Encoding": "gzip"})),
    "a gzip bomb": (
        413,
        "decompressed",
        (gzip.compress(bytes(10**7)), {"Content-Encoding": "gzip"}),
    ),
    "a deflate bomb": (
        413,
        "decompressed",
        (zlib.compress(bytes(10**7)), {"Content-Encoding": "deflate"}),
    ),
    "deep nesting": (400, "JSON", (b"[" * 50_000, {})),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_bodies(url: str, http: httpx.Client, name: str) -> None:
    status, says, (body, headers) = BAD[name]
    answer = http.post(url + INFER, content=body, headers=headers)
    assert answer.status_code == status, answer.text
    content = answer.json()
    assert list(content) == ["error"]
    assert says in content["error"]
    assert answer.headers["X-Request-ID"]


GOOD_BODIES = {
    "binary": framed(ASK, RAW),
    "flat": framed(data(FLAT)),
    "nested": framed(data(GOOD.tolist())),
    "nested without the header": (json.dumps(data(GOOD.tolist())).encode(), {}),
    "unknown keys of the request": framed({**ASK, "model_name": "arithmetic"}, RAW),
    "nulls": framed({**ASK, "id": None, "outputs": None, "parameters": None}, RAW),
    "nulls within": framed(
        {
            "inputs": [{**tensor(), "data": None}],
            "outputs": [{"name": "embedding", "parameters": None}],
            "parameters": {"layers": None, "exact": None},
        },
        RAW,
    ),
    "the schedule policy": framed({**ASK, "parameters": {"priority": 1, "timeout": 0}}, RAW),
    "a sequence": framed(
        {
            **ASK,
            "parameters": {"sequence_id": "s", "sequence_start": True, "sequence_end": True},
        },
        RAW,
    ),
    "identity": (framed(ASK, RAW)[0], framed(ASK, RAW)[1] | {"Content-Encoding": "identity"}),
    "gzip": (
        gzip.compress(framed(ASK, RAW)[0]),
        framed(ASK, RAW)[1] | {"Content-Encoding": "gzip"},
    ),
    **{
        f"JSON part of {spaces} more bytes": framed(b" " * spaces + json.dumps(ASK).encode(), RAW)
        for spaces in range(1, 4)
    },
}


def test_options_in_the_url_have_no_effect_and_are_refused(url: str, http: httpx.Client) -> None:
    body, headers = framed(ASK, RAW)
    answer = http.post(f"{url}{INFER}?pooling=cls&exact=true", content=body, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("pooling, exact would have no effect in the URL")


@pytest.mark.parametrize("name", GOOD_BODIES)
def test_good_bodies(url: str, http: httpx.Client, name: str) -> None:
    body, headers = GOOD_BODIES[name]
    expected = from_npy(http.post(f"{url}/embed", content=npy(GOOD), headers=NPY).content)
    answer = http.post(url + INFER, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    assert output["shape"] == list(expected.shape)
    assert np.array_equal(np.array(output["data"], np.float32).reshape(expected.shape), expected)


@pytest.mark.parametrize("datatype", ["FP16", "FP32"])
def test_floats_at_any_offset(url: str, http: httpx.Client, datatype: str) -> None:
    pixels = (GOOD / 7).astype(DATATYPES[datatype])
    expected = from_npy(http.post(f"{url}/embed", content=npy(pixels), headers=NPY).content)
    described = tensor(datatype=datatype, parameters={"binary_data_size": pixels.nbytes})
    text = json.dumps({"inputs": [described]}).encode()
    as_json = framed(data(pixels.reshape(-1).tolist(), datatype=datatype))
    for body, headers in (
        *(framed(text + b" " * shift, pixels.tobytes()) for shift in range(5)),
        as_json,
    ):
        answer = http.post(url + INFER, content=body, headers=headers)
        rows = np.array(answer.json()["outputs"][0]["data"], np.float32).reshape(expected.shape)
        assert np.array_equal(rows, expected)


def test_a_chunked_body(url: str, http: httpx.Client) -> None:
    body, headers = framed(ASK, RAW)
    answer = http.post(url + INFER, content=iter([body[:100], body[100:]]), headers=headers)
    assert answer.status_code == 200


# Structure: whatever the framing says, it is read or refused.

SIZES = st.one_of(
    st.none(), st.integers(-5, 2000), st.integers(), st.text(max_size=3), st.booleans()
)
SHAPES = st.one_of(
    st.just([2, 3, 8, 8]),
    st.lists(st.one_of(st.integers(-3, 9), st.integers()), max_size=9),
    st.none(),
    st.text(max_size=2),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
KEYS = st.sampled_from(["pooling", "layers", "exact", "timeout", "dtype", "priority", "x"])
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["pixel_values", "y", ""]),
        "shape": SHAPES,
        "datatype": st.one_of(
            st.sampled_from([*DATATYPES, "BYTES", "BOOL", "BF16"]), st.text(max_size=4)
        ),
        "parameters": st.one_of(
            st.none(), st.fixed_dictionaries({}, optional={"binary_data_size": SIZES})
        ),
        "data": st.one_of(VALUES, st.just(FLAT)),
    },
)
HEADS = st.one_of(
    st.binary(max_size=40),
    VALUES,
    st.fixed_dictionaries(
        {"inputs": st.lists(TENSORS, max_size=3)},
        optional={
            "id": st.one_of(st.text(max_size=5), st.integers()),
            "outputs": st.lists(
                st.fixed_dictionaries({"name": st.sampled_from(["embedding", "first", "z"])}),
                max_size=3,
            ),
            "parameters": st.dictionaries(KEYS, SCALARS, max_size=3),
        },
    ),
)
# One fault at a time in a request that is sound otherwise.
ALMOST = st.builds(
    lambda part, outputs: {"inputs": [{**tensor(), **part}], "outputs": outputs},
    TENSORS,
    st.lists(st.fixed_dictionaries({"name": st.sampled_from(["embedding", "first"])}), max_size=2),
)
SHIFTS = st.one_of(st.just(0), st.integers(-400, 400))
RAWS = st.one_of(st.just(RAW), st.binary(max_size=400))


@given(head=st.one_of(HEADS, ALMOST), raw=RAWS, shift=SHIFTS)
@settings(max_examples=250)
def test_any_framing_is_answered(
    url: str, http: httpx.Client, head: object, raw: bytes, shift: int
) -> None:
    body, headers = framed(head, raw, shift)
    answer = http.post(url + INFER, content=body, headers=headers)
    assert answer.status_code < 500, answer.text
    if answer.status_code == 200:
        assert answer.json()["outputs"]
    else:
        assert list(answer.json()) == ["error"]
        assert answer.json()["error"]


@given(head=st.one_of(HEADS, ALMOST), raw=RAWS, shift=SHIFTS)
@settings(max_examples=500)
def test_any_framing_is_read_or_refused(head: object, raw: bytes, shift: int) -> None:
    body, headers = framed(head, raw, shift)
    length = int(headers[LENGTH]) % (len(body) + 2)
    with suppress(MalformedRequest, InvalidInput):
        _, pixels = read_infer(memoryview(body), length, 8, WORKSPACE)
        assert pixels.dtype in DATATYPES.values()


@given(
    rows=st.integers(1, 5),
    datatype=st.sampled_from(list(DATATYPES)),
    seed=st.integers(0, 99),
    spaces=st.integers(0, 7),
)
def test_what_is_written_is_read(rows: int, datatype: str, seed: int, spaces: int) -> None:
    pixels = (
        np.random.default_rng(seed).integers(0, 255, (rows, 3, 4, 5)).astype(DATATYPES[datatype])
    )
    raw, length = infer_answer({"id": " " * spaces}, [Output("pixel_values", pixels, True)])
    assert length is not None
    head = json.loads(raw[:length])
    head["inputs"] = head.pop("outputs")
    body, _ = framed(head, raw[length:])
    asked, back = read_infer(memoryview(body), len(body) - pixels.nbytes, 4, WORKSPACE)
    assert asked.id == " " * spaces
    assert back.dtype == pixels.dtype
    assert np.array_equal(back, pixels)


# The service's own refusals.


class StuckEngine(ArithmeticEngine):
    """Waits to be let go; fails on pixels that are all 9."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def run(self, staged: Staged) -> Outputs:
        assert self.go.wait(30)
        outputs = super().run(staged)
        if (outputs["embedding"][:, :3] == 9).all():
            raise RuntimeError("nine")
        return outputs


def ask(url: str, value: int = 1, **options: Any) -> httpx.Response:
    body, headers = framed({"inputs": [tensor()], **options}, np.full_like(GOOD, value).tobytes())
    return httpx.post(url + INFER, content=body, headers=headers, timeout=30)


def test_refusals_have_the_protocols_shape() -> None:
    engine = StuckEngine()
    app = create_app(Settings(queue_rows=2, request_timeout=20), engine)
    with running(app) as url:
        late = ask(url, parameters={"timeout": 50_000})  # microseconds
        assert late.status_code == 504
        assert "0.05 s" in late.json()["error"]
        waiting = threading.Thread(target=ask, args=(url,))
        waiting.start()
        end = time.monotonic() + 20
        while app.state.service.queue.waiting_rows < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        full = ask(url)
        assert full.status_code == 429
        assert int(full.headers["Retry-After"]) >= 1
        assert "rows are waiting" in full.json()["error"]
        engine.go.set()
        waiting.join(30)
        failed = ask(url, value=9)
        assert failed.status_code == 500
        assert "RuntimeError" in failed.json()["error"]
        for method, path, status in (
            ("GET", "/v2/nothing", 404),
            ("GET", "/v2/models/none", 404),
            ("GET", "/v2/models/arithmetic/versions/7/ready", 404),
            ("GET", INFER, 405),
            ("POST", "/v2", 405),
            ("DELETE", "/v2/models/arithmetic", 405),
        ):
            answer = httpx.request(method, url + path)
            assert (answer.status_code, list(answer.json())) == (status, ["error"])
            assert isinstance(answer.json()["error"], str)
        assert isinstance(httpx.get(f"{url}/v2x").json()["error"], dict)  # not under /v2
        app.state.service.begin_drain()
        assert ask(url).status_code == 503
        for path in ("/v2/health/ready", "/v2/models/arithmetic/ready"):
            answer = httpx.get(url + path)
            assert answer.status_code == 503
            assert answer.json()["error"] == "the service is shutting down"
        assert httpx.get(f"{url}/v2/health/live").status_code == 200


def test_keys_and_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(create_app(Settings(api_keys="k"), ArithmeticEngine()), wait=False) as url:
        for path in ("/v2", "/v2/models/arithmetic"):
            answer = httpx.get(url + path)
            assert answer.status_code == 401
            assert "Bearer" in answer.json()["error"]
        assert ask(url).status_code == 401
        assert httpx.get(f"{url}/v2/health/live").status_code == 200
        headers = {"Authorization": "Bearer k"}
        assert httpx.get(f"{url}/v2", headers=headers).status_code == 200

        def broken(_: Settings) -> Limits:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(Limits, "of", broken)
        fault = httpx.post(url + INFER, content=b"{}", headers=headers)
    assert fault.status_code == 500
    assert fault.json() == {"error": "the service failed on this request: retry, then report it"}


def test_a_model_that_loads() -> None:
    class Late(ArithmeticEngine):
        def status(self) -> Any:
            from dataclasses import replace

            return {k: replace(v, info=None, state="loading") for k, v in super().status().items()}

    with running(create_app(Settings(), Late()), wait=False) as url:
        for path in ("", "/ready", "/config", "/stats"):
            answer = httpx.get(f"{url}/v2/models/arithmetic{path}")
            assert answer.status_code == 503
            assert "still loading" in answer.json()["error"]
        assert ask(url).status_code == 503
        assert httpx.get(f"{url}/v2/health/ready").status_code == 503
        assert httpx.get(f"{url}/v2/models/stats").json() == {"model_stats": []}
