"""`pooling=tokens`: all final tokens, in every format, through the client, with their grid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load

from support.fixtures_vim import DATA, load_arrays, load_fixture, relative_l2
from support.serving import NPY, from_npy, npy, running
from vim_embed import load_model
from vim_embed.engines.build import build_engines
from vim_embed.errors import PayloadTooLarge
from vim_embed.http.app import create_app
from vim_embed.http.submit import output_bytes
from vim_embed.settings import Settings
from vim_embed.types.model_info import EmbedOptions
from vim_embed_client import Client

MODELS = (f"micro={DATA / 'vim_micro.pth'}", f"registers={DATA / 'mambar_micro.pth'}")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = Settings(models=MODELS, device="cpu")
    with running(create_app(settings, build_engines(settings))) as address:
        yield address


def post(url: str, pixels: Any, accept: str, **query: str) -> httpx.Response:
    params = {"pooling": "tokens", **query}
    headers = {**NPY, "Accept": accept}
    return httpx.post(f"{url}/embed", content=npy(pixels), headers=headers, params=params)


@pytest.mark.parametrize("model", ["micro", "registers"])
def test_every_format(url: str, model: str) -> None:
    expected = load_arrays({"micro": "vim_micro", "registers": "mambar_micro"}[model])
    pixels, right = expected["pixel_values"], expected["tokens"]
    answer = post(url, pixels, "application/x-npy", model=model)
    assert answer.status_code == 200, answer.text
    assert relative_l2(from_npy(answer.content), right) < 1e-5
    assert answer.headers["X-Vim-Embed-Grid"] == "4,4"
    half = from_npy(post(url, pixels, "application/x-npy", model=model, dtype="float16").content)
    assert half.dtype == np.float16
    assert relative_l2(half, right) < 1e-3
    answer = post(url, pixels, "application/vnd.safetensors", model=model)
    assert relative_l2(load(answer.content)["embedding"], right) < 1e-5
    length = int.from_bytes(answer.content[:8], "little")
    assert json.loads(answer.content[8 : 8 + length])["__metadata__"]["grid"] == "4,4"
    answer = post(url, pixels, "application/json", model=model)
    assert relative_l2(answer.json()["embedding"], right) < 1e-5
    assert answer.json()["provenance"]["grid"] == "4,4"


def test_the_special_tokens_are_named(url: str) -> None:
    entries = {m["name"]: m for m in httpx.get(f"{url}/models").json()["models"]}
    assert entries["micro"]["tokens"] == {"grid": [4, 4], "cls": 8, "registers": [], "others": []}
    assert entries["registers"]["tokens"]["registers"] == [3, 7, 11, 15]


def test_the_grid_of_another_size(url: str) -> None:
    answer = post(url, np.zeros((2, 3, 96, 48), np.uint8), "application/x-npy")
    assert answer.headers["X-Vim-Embed-Grid"] == "6,3"
    assert from_npy(answer.content).shape == (2, 19, 64)


def test_through_the_client_in_several_requests_and_in_process(url: str) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (64, 3, 64, 64), dtype=np.uint8)
    model = load_model("micro", load_fixture("vim_micro").path, device="cpu")
    with Client(url) as client:
        answer = client.embed(pixels, model="micro", pooling="tokens", exact=True)
    found = np.asarray(answer)
    assert found.shape == (64, 17, 64)
    assert found.tobytes() == model.embed(pixels, "tokens", exact=True).tobytes()
    assert answer.provenance.grid == "4,4"


def test_more_tokens_than_an_answer_may_have() -> None:
    """17 tokens of 64 numbers an image: 4352 bytes."""
    info = load_model("micro", load_fixture("vim_micro").path, device="cpu").info
    pixels = np.zeros((70, 3, 64, 64), np.uint8)
    tokens = EmbedOptions(pooling="tokens")
    assert output_bytes(tokens, info, pixels, 70 * 4352) == 70 * 4352
    assert output_bytes(tokens, info, pixels[0], 4352) == 4352
    assert output_bytes(EmbedOptions(), info, pixels, 1) == 70 * 4 * 64
    with pytest.raises(PayloadTooLarge, match="304640 bytes, over the limit of 9000: send 2 at"):
        output_bytes(tokens, info, pixels, 9000)


def test_tokens_of_layers_are_refused(url: str) -> None:
    answer = post(url, np.zeros((1, 3, 64, 64), np.uint8), "application/x-npy", layers="blocks")
    assert answer.status_code in (406, 422)
