"""`POST /embed` with real models: every format in and out gives the original code's numbers."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load, save

from support.fixtures_vim import NAMES, load_fixture, relative_l2
from support.serving import NPY, from_npy, npy, running
from vim_embed import load_model
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed.types.preprocessing import IMAGENET_MEAN, IMAGENET_STD

FLOAT32 = 1e-5
MODELS = dict(zip(("micro", "plus"), NAMES, strict=True))
JSON = {"Content-Type": "application/json"}
PIXELS = np.random.default_rng(11).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)


def embed_npy(url: str, pixels: NDArray[Any], **query: str) -> NDArray[Any]:
    answer = httpx.post(f"{url}/embed", content=npy(pixels), headers=NPY, params=query, timeout=60)
    assert answer.status_code == 200, answer.text
    return from_npy(answer.content)


@pytest.mark.parametrize("model", MODELS)
def test_fixtures_over_http(micro_url: str, model: str) -> None:
    fixture = load_fixture(MODELS[model])
    mean = embed_npy(micro_url, fixture.pixel_values, model=model)
    assert mean.dtype == np.float32
    assert relative_l2(mean, fixture.mean) < FLOAT32
    cls = embed_npy(micro_url, fixture.pixel_values, model=model, pooling="cls")
    assert relative_l2(cls, fixture.cls) < FLOAT32


@pytest.mark.parametrize("model", MODELS)
def test_layers_over_http(micro_url: str, model: str) -> None:
    fixture = load_fixture(MODELS[model])
    answer = httpx.post(
        f"{micro_url}/embed?model={model}&layers=blocks",
        content=npy(fixture.pixel_values),
        headers=NPY,
    )
    assert answer.headers["Content-Type"] == "application/vnd.safetensors"
    layers = load(answer.content)
    for index, expected in enumerate(fixture.block_mean):
        assert relative_l2(layers[f"layers.{index}"], expected) < FLOAT32
    assert relative_l2(layers["last_hidden_state"], fixture.mean) < FLOAT32
    names = httpx.get(f"{micro_url}/models/{model}/layers").json()["layers"]
    assert names == json.loads(_metadata(answer.content)["layers"])
    assert set(names) == set(layers)


def test_uint8_equals_the_float_path(micro_url: str) -> None:
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    floats = (PIXELS.astype(np.float32) / 255 - mean) / std
    assert relative_l2(embed_npy(micro_url, PIXELS), embed_npy(micro_url, floats)) < 1e-6


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_float_dtypes(micro_url: str, dtype: str) -> None:
    fixture = load_fixture("vim_micro")
    found = embed_npy(micro_url, fixture.pixel_values.astype(dtype))
    assert relative_l2(found, fixture.mean) < (2e-3 if dtype == "float16" else FLOAT32)


def test_other_memory_layouts(micro_url: str) -> None:
    expected = embed_npy(micro_url, PIXELS)
    assert relative_l2(embed_npy(micro_url, np.asfortranarray(PIXELS)), expected) < FLOAT32
    assert relative_l2(embed_npy(micro_url, PIXELS[0]), expected[:1]) < FLOAT32


def test_json_forms(micro_url: str) -> None:
    expected = embed_npy(micro_url, PIXELS)
    raw = base64.b64encode(PIXELS.tobytes()).decode()
    for content in (
        {"inputs": PIXELS.tolist(), "dtype": "uint8"},
        {"inputs": {"base64": raw, "shape": list(PIXELS.shape), "dtype": "uint8"}},
    ):
        answer = httpx.post(f"{micro_url}/embed", json=content).json()
        assert relative_l2(answer["embedding"], expected) < FLOAT32
        assert answer["provenance"]["model"] == "micro"
    answer = httpx.post(f"{micro_url}/embed?encoding=base64", json=content).json()["embedding"]
    found = np.frombuffer(base64.b64decode(answer["base64"]), answer["dtype"])
    assert relative_l2(found.reshape(answer["shape"]), expected) < FLOAT32


def test_safetensors(micro_url: str) -> None:
    body = save({"pixel_values": PIXELS})
    answer = httpx.post(
        f"{micro_url}/embed", content=body, headers={"Content-Type": "application/vnd.safetensors"}
    )
    assert relative_l2(load(answer.content)["embedding"], embed_npy(micro_url, PIXELS)) < FLOAT32
    assert (
        _metadata(answer.content)["weights_digest"] == answer.headers["X-Vim-Embed-Weights-Digest"]
    )


def test_accept_chooses_the_answer(micro_url: str) -> None:
    for accept, kind in (
        ("application/json", "application/json"),
        ("text/html, application/json;q=0.5", "application/json"),
        ("application/json;q=0.1, application/x-npy", "application/x-npy"),
        ("*/*", "application/x-npy"),
    ):
        answer = httpx.post(
            f"{micro_url}/embed", content=npy(PIXELS), headers={**NPY, "Accept": accept}
        )
        assert answer.headers["Content-Type"] == kind


def test_half_precision_answers(micro_url: str) -> None:
    half = embed_npy(micro_url, PIXELS, dtype="float16")
    assert half.dtype == np.float16
    assert relative_l2(half, embed_npy(micro_url, PIXELS)) < 1e-3


def test_images_are_decoded_and_resized(micro_url: str) -> None:
    random = np.random.default_rng(3)
    picture = Image.fromarray(random.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    resized = picture.resize((64, 64), Image.Resampling.BICUBIC)
    expected = embed_npy(micro_url, np.asarray(resized).transpose(2, 0, 1))
    files = []
    for kind in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        file = io.BytesIO()
        picture.save(file, kind, **options)
        files.append((kind.lower(), file.getvalue()))
        answer = httpx.post(
            f"{micro_url}/embed",
            content=file.getvalue(),
            headers={"Content-Type": f"image/{kind.lower()}"},
        )
        assert relative_l2(from_npy(answer.content), expected) < FLOAT32
    form = [("images", (f"a.{kind}", data, f"image/{kind}")) for kind, data in files]
    together = from_npy(httpx.post(f"{micro_url}/embed", files=form).content)
    assert relative_l2(together, np.repeat(expected, 3, axis=0)) < FLOAT32


def test_grey_and_transparent_images_become_rgb(micro_url: str) -> None:
    grey = Image.fromarray(PIXELS[0, 0])
    as_rgb = embed_npy(micro_url, np.repeat(PIXELS[:1, :1], 3, axis=1))
    for picture in (grey, grey.convert("RGBA"), grey.convert("P")):
        file = io.BytesIO()
        picture.save(file, "PNG")
        answer = httpx.post(
            f"{micro_url}/embed", content=file.getvalue(), headers={"Content-Type": "image/png"}
        )
        assert relative_l2(from_npy(answer.content), as_rgb) < FLOAT32


def test_another_normalisation(micro_url: str) -> None:
    floats = (PIXELS.astype(np.float32) / 255 - 0.5) / 0.5
    query = {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5"}
    assert relative_l2(embed_npy(micro_url, PIXELS, **query), embed_npy(micro_url, floats)) < 1e-6
    own, other = (
        httpx.post(f"{micro_url}/embed", content=npy(PIXELS), headers=NPY, params=params)
        for params in ({}, query)
    )
    key = "X-Vim-Embed-Preprocessing-Digest"
    assert own.headers[key] != other.headers[key]


def test_other_image_sizes(micro_url: str) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (2, 3, 96, 80), dtype=np.uint8)
    model = load_model("micro", load_fixture("vim_micro").path, device="cpu")
    assert relative_l2(embed_npy(micro_url, pixels), model.embed(pixels)) < FLOAT32


def test_provenance_and_ids(micro_url: str) -> None:
    answer = httpx.post(
        f"{micro_url}/embed?model=plus",
        content=npy(PIXELS),
        headers={**NPY, "X-Request-ID": "galaxy-7"},
    )
    entry = httpx.get(f"{micro_url}/models/plus").json()
    headers = answer.headers
    assert headers["X-Request-ID"] == "galaxy-7"
    assert headers["X-Vim-Embed-Model"] == "plus"
    assert headers["X-Vim-Embed-Weights-Digest"] == entry["weights"]["digest"]
    assert headers["X-Vim-Embed-Preprocessing-Digest"] == entry["preprocessing"]["digest"]
    assert headers["X-Vim-Embed-Random-Weights"] == "false"
    for name in ("dtype", "backend", "device"):
        assert headers[f"X-Vim-Embed-{name.title()}"] == entry[name]
    assert {"queue", "forward", "total"} == {
        part.split(";")[0].strip() for part in headers["Server-Timing"].split(",")
    }


def test_unsafe_request_ids_are_replaced(micro_url: str) -> None:
    answer = httpx.get(f"{micro_url}/health/live", headers={"X-Request-ID": "a b\tc"})
    assert len(answer.headers["X-Request-ID"]) == 32


@pytest.mark.parametrize("exact_rows", [0, 8])
def test_exact_mode_gives_the_same_bytes(exact_rows: int) -> None:
    pixels = np.random.default_rng(8).integers(0, 256, (24, 3, 64, 64), dtype=np.uint8)
    path = load_fixture("vim_micro").path
    settings = Settings(models=(f"micro={path}",), device="cpu", exact_rows=exact_rows)
    with running(create_app(settings)) as url:
        whole = embed_npy(url, pixels, exact="true")
        sevens = [embed_npy(url, pixels[i : i + 7], exact="true") for i in range(0, 24, 7)]
        alone = [embed_npy(url, pixels[i], exact="true") for i in range(24)]
        answer = httpx.post(f"{url}/embed?exact=true", content=npy(pixels[:1]), headers=NPY)
        (entry,) = httpx.get(f"{url}/models").json()["models"]
    assert np.concatenate(sevens).tobytes() == whole.tobytes()
    assert np.concatenate(alone).tobytes() == whole.tobytes()
    assert answer.headers["X-Vim-Embed-Exact-Rows"] == str(entry["exact_rows"])
    model = load_model("micro", path, device="cpu", exact_rows=exact_rows)
    assert model.info.exact_rows == entry["exact_rows"]
    assert model.embed(pixels, exact=True).tobytes() == whole.tobytes()
    assert relative_l2(whole, model.embed(pixels)) < FLOAT32


def test_models_and_health(micro_url: str) -> None:
    listing = httpx.get(f"{micro_url}/models").json()
    assert listing["default"] == "micro"
    assert [entry["state"] for entry in listing["models"]] == ["ready", "ready"]
    micro = listing["models"][0]
    assert micro["dim"] == 64
    assert micro["preprocessing"]["image_size"] == 64
    assert micro["limits"]["max_rows"] == 256
    assert micro["backend_reason"]
    assert httpx.get(f"{micro_url}/health/ready").json()["models"] == {
        "micro": "ready",
        "plus": "ready",
    }


def test_a_hub_id_names_its_model(shallow_tiny: None) -> None:
    settings = Settings(models=("vim-tiny",), device="cpu", random_weights=True)
    hub_id = "hustvl/Vim-tiny-midclstok"
    with running(create_app(settings)) as url:
        assert httpx.get(f"{url}/models/{hub_id}").json()["name"] == "vim-tiny"
        assert httpx.get(f"{url}/models/{hub_id}/layers").json()["model"] == "vim-tiny"
        image = np.zeros((1, 3, 224, 224), np.uint8)
        answer = httpx.post(
            f"{url}/embed", content=npy(image), headers=NPY, params={"model": hub_id}, timeout=60
        )
        assert answer.headers["X-Vim-Embed-Model"] == "vim-tiny"
        assert answer.headers["X-Vim-Embed-Random-Weights"] == "true"


def test_metrics_count(micro_url: str) -> None:
    def rows() -> float:
        text = httpx.get(f"{micro_url}/metrics").text
        line = next(x for x in text.splitlines() if x.startswith('vim_embed_rows_total{model="mic'))
        return float(line.split()[-1])

    embed_npy(micro_url, PIXELS)
    before = rows()
    embed_npy(micro_url, PIXELS)
    assert rows() == before + 3


def test_docs_need_no_network(micro_url: str) -> None:
    page = httpx.get(f"{micro_url}/docs").text
    assert "https://" not in page
    assert httpx.get(f"{micro_url}/openapi.json").json()["paths"]["/embed"]


def _metadata(content: bytes) -> dict[str, str]:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(content)
        file.flush()
        with safe_open(file.name, framework="numpy") as opened:
            metadata: dict[str, str] = opened.metadata()
    return metadata
