"""Which weights the demo asks for."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from vim_embed_client.demo.weights import Choice, choose
from vim_embed_client.errors import ConfigurationError


def check(code: str) -> tuple[str, ...]:
    """A stand-in for the service's `check`."""
    return (sys.executable, "-c", code)


@pytest.fixture(autouse=True)
def _no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIM_EMBED_MODELS", raising=False)


def test_random_weights_by_name() -> None:
    choice = choose("vim-tiny", "random", command=check("raise SystemExit(9)"))
    assert choice.random
    assert "--weights random" in choice.reason


@pytest.mark.parametrize("source", ["/data/vim.pth", "hustvl/Vim-tiny-midclstok@main"])
def test_a_source_is_taken_at_its_word(source: str) -> None:
    choice = choose("vim-tiny", source, command=check("raise SystemExit(9)"))
    assert choice == Choice(model=f"vim-tiny={source}")


def test_auto_takes_weights_that_load() -> None:
    assert choose("vim-tiny", command=check("")) == Choice(model="vim-tiny")


def test_auto_takes_the_path_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIM_EMBED_MODELS", "vim-small, vim-tiny=/data/vim.pth")
    wanted = "import sys; sys.exit('vim-tiny=/data/vim.pth' not in sys.argv)"
    assert choose("vim-tiny", command=check(wanted)) == Choice(model="vim-tiny=/data/vim.pth")


_NOT_THERE = """import sys; print('[{"reason": "it is not in the cache"}]'); sys.exit(1)"""


@pytest.mark.parametrize(
    ("asked", "model", "random"), [(None, "vim-micro", False), ("vim-small", "vim-small", True)]
)
def test_auto_falls_back_with_the_reason(asked: str | None, model: str, random: bool) -> None:
    """To the packaged weights, but never to another model than one that was asked for."""
    choice = choose(asked, command=check(_NOT_THERE))
    assert choice == Choice(model=model, random=random, reason="it is not in the cache")


def test_auto_does_not_wait_long() -> None:
    choice = choose("vim-tiny", seconds=0.5, command=check("import time; time.sleep(60)"))
    assert choice.random
    assert "within 0 s" in choice.reason


@pytest.mark.parametrize("code", ["import sys; sys.exit('no such model')", "raise SystemExit(2)"])
def test_a_refusal_is_not_a_reason_for_random_weights(code: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"no such model|exit code 2"):
        choose("vim-tinny", command=check(code))
