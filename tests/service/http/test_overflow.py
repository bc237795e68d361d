"""A row that overflows the model fails its own request, in a way that no client sends again."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from support.fixtures_vim import load_fixture
from support.serving import NPY, npy, running
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client import Client, InvalidInputError

HUGE = {"float32": 3e38, "float16": 30_000.0, "bfloat16": 3e38}


@pytest.fixture(scope="module", params=HUGE)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, float]]:
    path = load_fixture("vim_micro").path
    settings = Settings(models=(f"micro={path}",), device="cpu", dtype=request.param)
    with running(create_app(settings)) as url:
        yield url, HUGE[request.param]


def pixels(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 3, 64, 64)).astype(np.float32)


def test_only_the_request_of_the_row_fails(served: tuple[str, float]) -> None:
    url, factor = served
    bad = pixels(4)
    with np.errstate(over="ignore"):
        bad[2] = np.clip(bad[2] * factor, -3.4e38, 3.4e38)
    answers: list[httpx.Response] = []

    def post(array: np.ndarray) -> None:
        answers.append(httpx.post(f"{url}/embed", content=npy(array), headers=NPY, timeout=60))

    threads = [threading.Thread(target=post, args=(array,)) for array in (bad, *[pixels(2)] * 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [answer.json()["error"] for answer in answers if answer.status_code != 200]
    assert [error["code"] for error in errors] == ["invalid_input"], errors
    assert "rows [2]" in errors[0]["message"]
    good = [answer.content for answer in answers if answer.status_code == 200]
    assert len(good) == 6
    with Client(url, max_retries=5) as client, pytest.raises(InvalidInputError):
        client.embed(bad)


@pytest.mark.parametrize("query", ["mean=1e6,1,1&std=1e-6,1,1", "std=1e-6,1e-6,1e-6"])
def test_a_normalisation_that_overflows_is_no_fault_of_the_service(
    served: tuple[str, float], query: str
) -> None:
    image = np.zeros((1, 3, 64, 64), np.uint8)
    answer = httpx.post(f"{served[0]}/embed?{query}", content=npy(image), headers=NPY, timeout=60)
    assert answer.status_code in (200, 422), answer.text
