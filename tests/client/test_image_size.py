"""Images of another size than the model's: a warning that names both, unless it is asked for."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from support.fixtures_vim import DATA
from support.serving import NPY, npy, running
from vim_embed import Embedder, load_model
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed.types.pixels import PixelError
from vim_embed_client import AsyncClient, Client, ImageSizeWarning, InputError

SIZE = 64
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(create_app(Settings(), ArithmeticEngine(image_size=SIZE))) as url:
        yield url


@pytest.fixture(scope="module")
def model() -> Embedder:
    return load_model("micro", str(DATA / "vim_micro.pth"))


def _blocking(url: str, method: str, *args: Any, **options: Any) -> Any:
    async def awaited() -> Any:
        async with AsyncClient(url, rows_per_request=2) as client:
            return await getattr(client, method)(*args, **options)

    return asyncio.run(awaited())


@pytest.fixture(params=["client", "asynchronous client", "in this process"])
def ways(request: pytest.FixtureRequest, url: str, model: Embedder) -> Iterator[dict[str, Call]]:
    """`embed` and `embed_layers` by name."""
    methods = ("embed", "embed_layers")
    if request.param == "client":
        with Client(url, rows_per_request=2) as client:
            yield {name: getattr(client, name) for name in methods}
    elif request.param == "asynchronous client":
        yield {name: partial(_blocking, url, name) for name in methods}
    else:
        yield {name: getattr(model, name) for name in methods}


def images(height: int, width: int, rows: int = 5) -> Any:
    return np.zeros((rows, 3, height, width), np.uint8)


def told(call: Call, *args: Any, **options: Any) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*args, **options)
    return [one for one in caught if issubclass(one.category, ImageSizeWarning)]


@pytest.mark.parametrize("method", ["embed", "embed_layers"])
def test_another_size_is_told_once_a_call(ways: dict[str, Call], method: str) -> None:
    for _ in range(2):
        (one,) = told(ways[method], images(32, 48))
        for words in ("32×48", f"{SIZE}×{SIZE}", "image_size=(32, 48)"):
            assert words in str(one.message)
    (one,) = told(ways[method], images(48, 48))
    assert "image_size=48 " in str(one.message)


def test_the_warning_points_at_the_caller(url: str, model: Embedder) -> None:
    async def asynchronously() -> None:
        async with AsyncClient(url) as client:
            await client.embed(images(32, 32))

    with Client(url) as client:
        found = [
            *told(lambda: client.embed(images(32, 32))),
            *told(lambda: client.embed_layers(images(32, 32))),
            *told(lambda: model.embed(images(32, 32))),
            *told(lambda: model.embed_layers(images(32, 32))),
            *told(partial(asyncio.run, asynchronously())),
        ]
    assert [one.filename for one in found] == 5 * [__file__]


@pytest.mark.parametrize("method", ["embed", "embed_layers"])
def test_the_models_size_and_one_that_is_asked_for_are_not_told(
    ways: dict[str, Call], method: str
) -> None:
    call = ways[method]
    assert not told(call, images(SIZE, SIZE))
    assert not told(call, images(SIZE, SIZE), image_size=SIZE)
    assert not told(call, images(32, 48), image_size=(32, 48))
    assert not told(call, images(48, 48), image_size=48)


@pytest.mark.parametrize("method", ["embed", "embed_layers"])
@pytest.mark.parametrize("size", [SIZE, 48, (48, 32), [32, 32]])
def test_a_size_that_the_images_have_not(ways: dict[str, Call], method: str, size: Any) -> None:
    with pytest.raises((InputError, PixelError), match=r"32×48 pixels .*leave image_size out"):
        ways[method](images(32, 48), image_size=size)


def test_encoded_images_are_resized_without_a_word(url: str) -> None:
    with Client(url) as client:
        assert not told(client.embed_images, [Image.new("RGB", (30, 20))])


def test_every_answer_tells_the_models_size_where_that_is_another(url: str) -> None:
    for side, size in ((32, str(SIZE)), (SIZE, None)):
        for accept in ("application/x-npy", "application/json"):
            answer = httpx.post(
                f"{url}/embed", content=npy(images(side, side)), headers=NPY | {"Accept": accept}
            )
            assert answer.headers.get("X-Vim-Embed-Native-Size") == size
        assert answer.json()["provenance"].get("native_size") == size


def test_answers_of_the_open_inference_protocol_tell_it_too(url: str) -> None:
    for side, size in ((32, str(SIZE)), (SIZE, None)):
        pixels = np.zeros((1, 3, side, side), np.float32)
        body = {"inputs": [{"name": "pixel_values", "shape": pixels.shape, "datatype": "FP32",
                            "data": pixels.ravel().tolist()}]}  # fmt: skip
        name = httpx.get(f"{url}/models").json()["default"]
        answer = httpx.post(f"{url}/v2/models/{name}/infer", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["parameters"].get("native_size") == size
