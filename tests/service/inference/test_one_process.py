"""A loaded model belongs to the process that loaded it."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from support.fixtures_vim import DATA
from vim_embed import Embedder, load_model
from vim_embed.inference.one_process import OneProcess

PIXELS = np.zeros((1, 3, 64, 64), np.uint8)


@pytest.fixture
def model() -> Embedder:
    return load_model("micro", DATA / "vim_micro.pth", device="cpu")


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_cannot_be_copied(model: Embedder, duplicate: Callable[[Embedder], object]) -> None:
    with pytest.raises(TypeError, match=r"model micro .* call load_model in each process"):
        duplicate(model)
    assert model.embed(PIXELS).shape == (1, 64)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    child = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: child)


def test_a_fork_would_wait_for_threads_that_it_does_not_have(
    model: Embedder, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.embed(PIXELS)
    request.getfixturevalue("forked")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for call in (model.embed, model.embed_layers):
        with pytest.raises(RuntimeError, match=r"forked: .* torch.set_num_threads\(1\)"):
            call(PIXELS)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert model.embed(PIXELS).tobytes() == expected.tobytes()


def test_cuda_does_not_survive_a_fork(request: pytest.FixtureRequest) -> None:
    process = OneProcess(torch.device("cuda:0"))
    process.check()
    request.getfixturevalue("forked")
    with pytest.raises(RuntimeError, match="spawn"):
        process.check()
