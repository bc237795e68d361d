"""The Open Inference Protocol with unmodified tritonclient against a real server: every number is
that of POST /embed, in any of its three clients."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from safetensors.numpy import load
from tritonclient.utils import InferenceServerException

from support.fixtures_vim import NAMES, load_fixture, relative_l2
from support.serving import NPY, from_npy, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed.types.model_info import EmbedOptions

MODELS = ("micro", "plus")
SAFETENSORS = "application/vnd.safetensors"
GENERATOR = np.random.default_rng(8)
# Every row has its own brightness, so that a swapped row shows.
UINT8 = np.stack([GENERATOR.integers(30 * i, 30 * i + 40, (3, 64, 64)) for i in range(7)])
PIXELS: dict[str, NDArray[Any]] = {
    "UINT8": UINT8.astype(np.uint8),
    "FP16": (UINT8 / 64 - 2).astype(np.float16),
    "FP32": (UINT8 / 64 - 2).astype(np.float32),
}


@pytest.fixture(scope="module")
def client(micro_url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(micro_url.removeprefix("http://")) as client:
        yield client


def tensor(datatype: str, *, binary: bool = True, module: Any = triton) -> Any:
    pixels = PIXELS[datatype]
    made = module.InferInput("pixel_values", list(pixels.shape), datatype)
    return made.set_data_from_numpy(pixels, binary_data=binary)


def embed(url: str, pixels: NDArray[Any], **query: str) -> NDArray[Any]:
    answer = httpx.post(f"{url}/embed", content=npy(pixels), headers=NPY, params=query, timeout=60)
    assert answer.status_code == 200, answer.text
    return from_npy(answer.content)


def embed_layers(url: str, pixels: NDArray[Any], **query: str) -> dict[str, NDArray[Any]]:
    headers = {**NPY, "Accept": SAFETENSORS}
    answer = httpx.post(
        f"{url}/embed", content=npy(pixels), headers=headers, params=query, timeout=60
    )
    assert answer.status_code == 200, answer.text
    arrays: dict[str, NDArray[Any]] = load(answer.content)
    return arrays


# tritonclient itself writes no FP16 as JSON; test_v2_bodies.py sends it.
@pytest.mark.parametrize(
    ("datatype", "binary_in"),
    [("UINT8", True), ("UINT8", False), ("FP16", True), ("FP32", True), ("FP32", False)],
)
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_rows_are_those_of_embed(
    client: triton.InferenceServerClient,
    micro_url: str,
    model: str,
    datatype: str,
    binary_in: bool,
    binary_out: bool,
) -> None:
    wanted = [triton.InferRequestedOutput("embedding", binary_data=binary_out)]
    given = [tensor(datatype, binary=binary_in)]
    result = client.infer(model, given, outputs=wanted, parameters={"exact": True})
    expected = embed(micro_url, PIXELS[datatype], model=model, exact="true")
    rows = result.as_numpy("embedding")
    assert rows.dtype == np.float32
    assert np.array_equal(rows, expected)
    assert len(np.unique(rows, axis=0)) == len(rows)  # no row stands for another


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("version", ["", "1"])
def test_the_original_codes_numbers(
    client: triton.InferenceServerClient, model: str, version: str
) -> None:
    fixture = load_fixture(NAMES[MODELS.index(model)])
    pixels = fixture.pixel_values
    given = triton.InferInput("pixel_values", list(pixels.shape), "FP32")
    given.set_data_from_numpy(pixels)
    for pooling, expected in (("mean", fixture.mean), ("cls", fixture.cls)):
        result = client.infer(
            model, [given], model_version=version, parameters={"pooling": pooling}
        )
        assert relative_l2(result.as_numpy("embedding"), expected) < 1e-5


def test_outputs_choose_the_layers(client: triton.InferenceServerClient, micro_url: str) -> None:
    names = ["layers.2", "embedding", "layers.0"]
    wanted = [triton.InferRequestedOutput(n, binary_data=n != "layers.0") for n in names]
    result = client.infer(
        "micro", [tensor("UINT8")], outputs=wanted, parameters={"exact": True, "pooling": "cls"}
    )
    blocks = embed_layers(
        micro_url, PIXELS["UINT8"], model="micro", exact="true", pooling="cls", layers="blocks"
    )
    assert [o["name"] for o in result.get_response()["outputs"]] == names
    for name in ("layers.2", "layers.0"):
        assert np.array_equal(result.as_numpy(name), blocks[name])
    assert np.array_equal(result.as_numpy("embedding"), blocks["last_hidden_state"])
    alone = embed(micro_url, PIXELS["UINT8"], model="micro", exact="true", pooling="cls")
    assert relative_l2(result.as_numpy("embedding"), alone) < 1e-5


@pytest.mark.parametrize("granularity", ["blocks", "residual", "leaves", "all"])
def test_every_granularity(
    client: triton.InferenceServerClient, micro_url: str, granularity: str
) -> None:
    pixels = PIXELS["UINT8"]
    expected = embed_layers(micro_url, pixels, model="plus", exact="true", layers=granularity)
    parameters = {"exact": True, "layers": granularity}
    result = client.infer("plus", [tensor("UINT8")], parameters=parameters)
    outputs = [o["name"] for o in result.get_response()["outputs"]]
    assert sorted(outputs) == sorted(expected)
    for name in outputs:
        assert np.array_equal(result.as_numpy(name), expected[name])
    # The last but one needs no parameter: its name is enough.
    name = outputs[-2]
    chosen = client.infer(
        "plus",
        [tensor("UINT8")],
        outputs=[triton.InferRequestedOutput(name)],
        parameters={"exact": True},
    )
    assert relative_l2(chosen.as_numpy(name), expected[name]) < 1e-5


def test_half_precision_out(client: triton.InferenceServerClient, micro_url: str) -> None:
    for dtype in ("FP16", "float16"):
        result = client.infer("micro", [tensor("FP32")], parameters={"dtype": dtype, "exact": True})
        expected = embed(micro_url, PIXELS["FP32"], model="micro", exact="true", dtype="float16")
        assert result.as_numpy("embedding").dtype == np.float16
        assert np.array_equal(result.as_numpy("embedding"), expected)


def test_mean_and_std(client: triton.InferenceServerClient, micro_url: str) -> None:
    own = {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5"}
    result = client.infer("micro", [tensor("UINT8")], parameters={**own, "exact": True})
    expected = embed(micro_url, PIXELS["UINT8"], model="micro", exact="true", **own)
    assert np.array_equal(result.as_numpy("embedding"), expected)
    assert not np.array_equal(expected, embed(micro_url, PIXELS["UINT8"], model="micro"))


@pytest.mark.parametrize("coding_in", [None, "gzip", "deflate"])
@pytest.mark.parametrize("coding_out", [None, "gzip", "deflate"])
async def test_compression_in_all_clients(
    client: triton.InferenceServerClient, micro_url: str, coding_in: str, coding_out: str
) -> None:
    options = {
        "request_compression_algorithm": coding_in,
        "response_compression_algorithm": coding_out,
        "parameters": {"exact": True},
    }
    expected = embed(micro_url, PIXELS["FP32"], model="micro", exact="true")
    sync = client.infer("micro", [tensor("FP32")], **options)
    assert np.array_equal(sync.as_numpy("embedding"), expected)
    async with triton_aio.InferenceServerClient(micro_url.removeprefix("http://")) as aio:
        given = tensor("FP32", module=triton_aio)
        result = await aio.infer("micro", [given], **options)
    assert np.array_equal(result.as_numpy("embedding"), expected)


def test_compression_is_real(micro_url: str) -> None:
    body = b'{"inputs": []}'
    for coding in ("gzip", "deflate"):
        headers = {"Content-Encoding": coding, "Accept-Encoding": coding}
        answer = httpx.post(f"{micro_url}/v2/models/micro/infer", content=body, headers=headers)
        assert answer.status_code == 400
        assert coding in answer.json()["error"]
    pixels = PIXELS["UINT8"]
    content = {
        "inputs": [
            {
                "name": "pixel_values",
                "shape": pixels.shape,
                "datatype": "UINT8",
                "data": pixels.tolist(),
            }
        ]
    }
    for accept, coded in (("gzip", "gzip"), ("deflate", "deflate"), ("gzip, deflate, br", None)):
        answer = httpx.post(
            f"{micro_url}/v2/models/micro/infer", json=content, headers={"Accept-Encoding": accept}
        )
        assert answer.headers.get("Content-Encoding") == coded
        assert answer.json()["outputs"][0]["shape"] == [7, 64]


def test_async_infer(client: triton.InferenceServerClient, micro_url: str) -> None:
    with triton.InferenceServerClient(micro_url.removeprefix("http://"), concurrency=4) as many:
        parts = [PIXELS["UINT8"][i : i + 1] for i in range(7)]
        waiting = []
        for number, part in enumerate(parts):
            given = triton.InferInput("pixel_values", list(part.shape), "UINT8")
            given.set_data_from_numpy(part)
            waiting.append(
                many.async_infer(
                    "micro", [given], request_id=str(number), parameters={"exact": True}
                )
            )
        results = [w.get_result() for w in waiting]
    expected = embed(micro_url, PIXELS["UINT8"], model="micro", exact="true")
    for number, result in enumerate(results):
        assert result.get_response()["id"] == str(number)
        assert np.array_equal(result.as_numpy("embedding"), expected[number : number + 1])


async def test_aio(micro_url: str) -> None:
    expected = await asyncio.to_thread(embed, micro_url, PIXELS["FP16"], model="plus", exact="true")
    async with triton_aio.InferenceServerClient(micro_url.removeprefix("http://")) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("plus")
        assert (await client.get_server_metadata())["name"] == "vim-embed"
        assert (await client.get_model_metadata("plus"))["name"] == "plus"
        assert (await client.get_model_config("plus"))["name"] == "plus"
        assert (await client.get_inference_statistics("plus"))["model_stats"]
        given = [tensor("FP16", module=triton_aio)]
        wanted = [triton_aio.InferRequestedOutput("embedding", binary_data=False)]
        results = await asyncio.gather(
            *(
                client.infer("plus", given, outputs=wanted, parameters={"exact": True})
                for _ in range(4)
            )
        )
        with pytest.raises(InferenceServerException, match="no model 'other'"):
            await client.infer("other", given)
    for result in results:
        assert np.array_equal(result.as_numpy("embedding"), expected)


def test_a_raw_request(micro_url: str) -> None:
    image = PIXELS["FP32"][:1]
    headers = {"Inference-Header-Content-Length": "0"}
    url = f"{micro_url}/v2/models/micro/versions/1/infer"
    answer = httpx.post(url, content=image.tobytes(), headers=headers)
    length = int(answer.headers["Inference-Header-Content-Length"])
    rows = np.frombuffer(answer.content[length:], "<f4").reshape(1, -1)
    assert relative_l2(rows, embed(micro_url, image, model="micro")) < 1e-6
    short = httpx.post(url, content=image.tobytes()[:-4], headers=headers)
    assert short.status_code == 422
    assert "49152 bytes" in short.json()["error"]


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("micro")
    assert client.is_model_ready("micro", "1")
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("micro", "2")
    server = client.get_server_metadata()
    assert {"binary_tensor_data", "model_configuration", "statistics"} <= set(server["extensions"])
    for version in ("", "1"):
        model = client.get_model_metadata("micro", version)
        assert model["versions"] == ["1"]
        assert model["inputs"] == [
            {"name": "pixel_values", "datatype": "FP32", "shape": [-1, 3, 64, 64]}
        ]
        config = client.get_model_config("micro", version)
        assert config["max_batch_size"] == 256
        # perf_analyzer: the config's tensors are the metadata's, without the batch dimension.
        for kind in ("input", "output"):
            of_config = [(t["name"], t["dims"]) for t in config[kind]]
            assert of_config == [(t["name"], t["shape"][1:]) for t in model[f"{kind}s"]]
            assert {t["data_type"] for t in config[kind]} == {"TYPE_FP32"}
    assert config["parameters"]["weights_digest"]["string_value"].startswith("sha256:")


def test_every_output_of_the_metadata_can_be_asked_for(
    client: triton.InferenceServerClient,
) -> None:
    for model in MODELS:
        described = client.get_model_metadata(model)["outputs"]
        assert [d["name"] for d in described][:2] == ["embedding", "patch_embed"]
        wanted = [triton.InferRequestedOutput(d["name"]) for d in described]
        result = client.infer(model, [tensor("UINT8")], outputs=wanted)
        for output in described:
            assert result.as_numpy(output["name"]).shape == (7, *output["shape"][1:])


def test_the_id_and_the_provenance(client: triton.InferenceServerClient, micro_url: str) -> None:
    result = client.infer("micro", [tensor("UINT8")], request_id="galaxy-7")
    head = result.get_response()
    assert head["id"] == "galaxy-7"
    assert (head["model_name"], head["model_version"]) == ("micro", "1")
    headers = httpx.post(f"{micro_url}/embed", content=npy(PIXELS["UINT8"]), headers=NPY).headers
    of_embed = {k: v for k, v in headers.items() if k.startswith("x-vim-embed-")}
    of_v2 = {f"x-vim-embed-{k.replace('_', '-')}": v for k, v in head["parameters"].items()}
    assert of_v2 == of_embed
    assert "id" not in client.infer("micro", [tensor("UINT8")]).get_response()


def test_statistics_count(micro_url: str) -> None:
    app = create_app(Settings(), ArithmeticEngine(("a", "b")))
    pixels = np.ones((5, 3, 8, 8), np.float32)
    with (
        running(app) as url,
        triton.InferenceServerClient(url.removeprefix("http://")) as client,
    ):
        given = triton.InferInput("pixel_values", list(pixels.shape), "FP32")
        given.set_data_from_numpy(pixels)
        for _ in range(3):
            client.infer("a", [given])
        with pytest.raises(InferenceServerException, match="unknown pooling"):
            client.infer("a", [given], parameters={"pooling": "median"})
        bad = triton.InferInput("pixel_values", [1, 3, 8, 8], "FP32")
        bad.set_data_from_numpy(np.full((1, 3, 8, 8), np.nan, np.float32))
        with pytest.raises(InferenceServerException, match="NaN"):
            client.infer("a", [bad])
        (seen,) = client.get_inference_statistics("a")["model_stats"]
        both = client.get_inference_statistics()["model_stats"]
    assert [m["name"] for m in both] == ["a", "b"]
    assert (seen["inference_count"], seen["execution_count"]) == (15, 3)
    spent = seen["inference_stats"]
    assert spent["success"]["count"] == 3
    assert spent["fail"]["count"] == 1
    assert 0 < spent["compute_infer"]["ns"] < spent["success"]["ns"]
    assert spent["queue"]["ns"] + spent["compute_infer"]["ns"] <= spent["success"]["ns"]
    assert both[1]["inference_stats"]["success"]["count"] == 0


def test_a_hub_id_is_a_name(micro_url: str) -> None:
    class Aliased(ArithmeticEngine):
        def status(self) -> Any:
            from dataclasses import replace

            return {k: replace(v, aliases=("org/name",)) for k, v in super().status().items()}

    with (
        running(create_app(Settings(), Aliased())) as url,
        triton.InferenceServerClient(url.removeprefix("http://")) as client,
    ):
        given = triton.InferInput("pixel_values", [1, 3, 8, 8], "FP32")
        given.set_data_from_numpy(np.ones((1, 3, 8, 8), np.float32))
        assert client.is_model_ready("org/name")
        assert client.get_model_metadata("org/name", "1")["name"] == "arithmetic"
        answer = client.infer("org/name", [given], model_version="1").get_response()
        assert answer["model_name"] == "arithmetic"


def test_rows_stay_with_their_request_under_load() -> None:
    """Requests of both routes share batches; each gets its own rows back."""
    generator = np.random.default_rng(3)
    parts = [generator.random((rows, 3, 8, 8), np.float32) for rows in [1, 2, 5, 17, 3, 8] * 8]
    alone = ArithmeticEngine()

    def by_embed(url: str, pixels: NDArray[Any]) -> NDArray[Any]:
        return embed(url, pixels)

    def by_v2(url: str, pixels: NDArray[Any]) -> NDArray[Any]:
        given = triton.InferInput("pixel_values", list(pixels.shape), "FP32")
        given.set_data_from_numpy(pixels)
        with triton.InferenceServerClient(url.removeprefix("http://")) as own:
            rows: NDArray[Any] = own.infer("arithmetic", [given]).as_numpy("embedding")
        return rows

    with running(create_app(Settings(), ArithmeticEngine())) as url, ThreadPoolExecutor(8) as pool:
        waiting = [
            pool.submit((by_embed, by_v2)[number % 2], url, part)
            for number, part in enumerate(parts)
        ]
        for part, answer in zip(parts, waiting, strict=True):
            staged = alone.stage("arithmetic", [part], EmbedOptions())
            assert np.array_equal(answer.result(60), alone.run(staged)["embedding"])


def test_a_key_travels_in_the_headers() -> None:
    with (
        running(create_app(Settings(api_keys="k"), ArithmeticEngine()), wait=False) as url,
        triton.InferenceServerClient(url.removeprefix("http://")) as client,
    ):
        assert client.is_server_live()
        with pytest.raises(InferenceServerException, match="Authorization: Bearer"):
            client.get_model_metadata("arithmetic")
        headers = {"Authorization": "Bearer k"}
        assert client.get_model_metadata("arithmetic", headers=headers)["name"] == "arithmetic"
        given = triton.InferInput("pixel_values", [1, 3, 8, 8], "FP32")
        given.set_data_from_numpy(np.ones((1, 3, 8, 8), np.float32))
        rows = client.infer("arithmetic", [given], headers=headers).as_numpy("embedding")
        assert rows.shape == (1, 8)
