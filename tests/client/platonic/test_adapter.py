"""The adapters by themselves: the host's contract, both kinds side by side, names, imports."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from support.serving import running
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client import ConfigurationError, InputError, ServiceNotInstalledError
from vim_embed_client.platonic import (
    ALIASES,
    InProcessAdapter,
    RemoteAdapter,
    VimAdapter,
    register_aliases,
)
from vim_embed_client.platonic.adapter import InProcessProxyAdapter, RemoteProxyAdapter

from .adapters import TINY, rgb

pytestmark = pytest.mark.usefixtures("environment")

GRANULARITIES = ["blocks", "residual", "leaves", "all"]

# The host's base class: what its experiments may pass, by name. Head of May 2026, a superset of
# 0.1.0, which has the first four without the arguments that have defaults here.
CONTRACT: dict[str, dict[str, Any]] = {
    "__init__": {"model_name": ..., "size": ..., "alias": None},
    "load": {"compile_model": False},
    "get_preprocessor": {"modes": ..., "resize": False, "resize_mode": "fill"},
    "embed_for_mode": {"batch": ..., "mode": ...},
    "enable_amp": {"enabled": True},
    "supports_layerwise": {},
    "get_layer_names": {"granularity": "blocks"},
    "get_num_layers": {"granularity": "blocks"},
    "get_layer_info": {"granularity": "blocks"},
    "embed_all_layers_for_mode": {"batch": ..., "mode": ..., "granularity": "blocks"},
}


@pytest.fixture(scope="module")
def twin_url(models: list[str]) -> Iterator[str]:
    """A service with the tiny model and its half-precision twin."""
    served = (models[0], models[0].replace("vim-tiny=", "vim-tiny-float16="))
    with running(create_app(Settings(models=served, device="cpu"))) as url:
        yield url


@pytest.fixture
def pair(
    twin_url: str, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[VimAdapter, VimAdapter]:
    """The tiny model over HTTP and in process, loaded."""
    monkeypatch.setenv("VIM_EMBED_URL", twin_url)
    monkeypatch.setenv("VIM_EMBED_MODELS", ",".join(models))
    over_http = RemoteAdapter(TINY, "tiny", alias="vim-remote")
    in_process = InProcessAdapter(TINY, "tiny", alias="vim")
    over_http.load()
    in_process.load()
    return over_http, in_process


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("cls", [RemoteAdapter, InProcessAdapter])
def test_signatures_are_the_host_s(cls: type, name: str) -> None:
    parameters = list(inspect.signature(getattr(cls, name)).parameters.values())[1:]
    found = {p.name: ... if p.default is p.empty else p.default for p in parameters}
    assert found == CONTRACT[name]


KINDS: dict[str, type[VimAdapter]] = {
    "vim": InProcessAdapter,
    "vim-proxy": InProcessProxyAdapter,
    "vim-remote": RemoteAdapter,
    "vim-remote-proxy": RemoteProxyAdapter,
}


def registered(twins: dict[str, dict[str, str]] | None = None) -> dict[str, type[VimAdapter]]:
    registry: dict[str, type[VimAdapter]] = {}
    register_aliases(registry.__setitem__, twins)
    return registry


def test_every_alias_is_registered_with_its_kind() -> None:
    registry = registered()
    sizes = ("tiny", "small", "base")
    assert {alias: registry[alias] for alias in KINDS} == KINDS
    assert registry.keys() == {*KINDS, *(f"{alias}-{size}" for alias in KINDS for size in sizes)}
    for alias, kind in KINDS.items():
        for size in sizes:
            one = registry[f"{alias}-{size}"]
            assert issubclass(one, kind)
            assert one.own_alias == f"{alias}-{size}"


VIMS, PROXIES = ALIASES["vim"], ALIASES["vim-proxy"]
MEANT: list[tuple[str, str, str | None, str]] = [
    # registered as, model name, alias given, model meant (size tiny)
    ("vim-proxy", VIMS[0], "vim-proxy", PROXIES[0]),
    ("vim-proxy", VIMS[0], None, PROXIES[0]),
    ("vim-proxy", "vim-tiny", "vim-proxy", PROXIES[0]),
    ("vim-proxy", PROXIES[0], "vim-proxy", PROXIES[0]),
    ("vim-remote-proxy", VIMS[0], "vim-remote-proxy", PROXIES[0]),
    ("vim", PROXIES[0], "vim", VIMS[0]),
    ("vim", "vim-tiny-proxy", None, VIMS[0]),
    ("vim", VIMS[0], "vim", VIMS[0]),
    ("vim", "me/my-vim", "vim", "me/my-vim"),
    ("vim-proxy", "me/my-vit", "vim-proxy", "me/my-vit"),
    ("vim-proxy", VIMS[0], "another", VIMS[0]),
    ("vim-proxy-tiny", VIMS[0], "vim-proxy-tiny", PROXIES[0]),
    ("vim-proxy-tiny", VIMS[0], None, PROXIES[0]),
    ("vim-remote-tiny", "vim-tiny-proxy", "vim-remote-tiny", VIMS[0]),
]


@pytest.mark.parametrize(("kind", "name", "alias", "meant"), MEANT)
def test_the_alias_decides_which_model_is_meant(
    kind: str, name: str, alias: str | None, meant: str
) -> None:
    assert registered()[kind](name, "tiny", alias=alias).model_name == meant


@pytest.mark.parametrize(("place", "size"), [(0, "tiny"), (1, "small"), (2, "base")])
def test_the_size_decides_which_of_a_family(place: int, size: str) -> None:
    assert InProcessProxyAdapter(VIMS[0], size, alias="vim-proxy").model_name == PROXIES[place]
    assert InProcessProxyAdapter(VIMS[place], "?", alias="vim-proxy").model_name == PROXIES[place]


def test_every_model_name_is_one_of_the_catalogue() -> None:
    from vim_embed.weights.catalogue import parse_model

    for alias, names in ALIASES.items():
        suffix = "-proxy" if alias.endswith("-proxy") else ""
        found = [parse_model(name).name for name in names]
        assert found == [f"vim-{size}{suffix}" for size in ("tiny", "small", "base")]


@pytest.mark.parametrize("kind", ["RemoteAdapter", "InProcessAdapter"])
def test_importing_and_making_an_adapter_is_light(kind: str) -> None:
    code = (
        "import json, sys\n"
        f"from vim_embed_client.platonic import {kind} as A, register_aliases\n"
        "A('hustvl/Vim-tiny-midclstok', 'tiny', alias='vim').enable_amp(False)\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    tops = {name.partition(".")[0] for name in json.loads(found.stdout)}
    assert not tops & {"torch", "vim_embed", "pu", "transformers", "fastapi", "PIL", "datasets"}


def test_both_kinds_give_the_same_numbers(pair: tuple[VimAdapter, VimAdapter]) -> None:
    batch = {"hsc": rgb(5, 64), "jwst": torch.randn(5, 3, 64, 64)}
    for mode in batch:
        over_http, in_process = (adapter.embed_for_mode(batch, mode) for adapter in pair)
        assert over_http.dtype == torch.float32
        assert over_http.device.type == "cpu"
        assert over_http.shape == (5, 192)
        torch.testing.assert_close(over_http, in_process, rtol=0, atol=1e-6)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_layers_follow_the_contract(pair: tuple[VimAdapter, VimAdapter], granularity: str) -> None:
    batch = {"hsc": rgb(3, 64)}
    results = []
    for adapter in pair:
        assert adapter.supports_layerwise()
        layers = adapter.embed_all_layers_for_mode(batch, "hsc", granularity=granularity)
        names = adapter.get_layer_names(granularity)
        assert list(layers) == names
        assert names[-1] == "last_hidden_state"
        assert adapter.get_num_layers(granularity) == len(names) == len(set(names))
        assert list(adapter.get_layer_info(granularity)) == names[:-1]
        assert torch.equal(layers["last_hidden_state"], adapter.embed_for_mode(batch, "hsc"))
        assert all(v.dtype == torch.float32 and len(v) == 3 for v in layers.values())
        results.append((layers, adapter.get_layer_info(granularity)))
    (over_http, kinds), (in_process, same_kinds) = results
    assert kinds == same_kinds
    for name, layer in in_process.items():
        torch.testing.assert_close(over_http[name], layer, rtol=1e-5, atol=1e-6)


def test_the_granularities_differ(pair: tuple[VimAdapter, VimAdapter]) -> None:
    counts = [pair[0].get_num_layers(granularity) for granularity in GRANULARITIES]
    assert counts == sorted(counts)
    assert len(set(counts)) == 4
    with pytest.raises(InputError, match="unknown granularity 'layers': use one of blocks"):
        pair[0].get_layer_names("layers")


def test_amp_asks_for_the_half_precision_twin(
    pair: tuple[VimAdapter, VimAdapter], capsys: pytest.CaptureFixture[str]
) -> None:
    batch = {"hsc": rgb(4, 64)}
    exact = pair[0].embed_for_mode(batch, "hsc")
    for adapter in pair:
        adapter.enable_amp(True)
        half = adapter.embed_for_mode(batch, "hsc")
        assert half.dtype == torch.float32
        error = ((half - exact).norm() / exact.norm()).item()
        assert 1e-6 < error < 5e-3
        adapter.enable_amp(False)
        torch.testing.assert_close(adapter.embed_for_mode(batch, "hsc"), exact)
    assert "vim-tiny-float16 at " in capsys.readouterr().out


def test_modules_can_be_walked_as_the_host_does(pair: tuple[VimAdapter, VimAdapter]) -> None:
    over_http, in_process = pair
    image = torch.randn(2, 3, 64, 64)
    for adapter in pair:
        assert next(adapter.model.parameters()).device.type == "cpu"
    assert len(dict(in_process.model.named_modules())) > 100
    assert list(over_http.model.children()) == []
    torch.testing.assert_close(
        over_http.model(image), over_http.embed_for_mode({"hsc": image}, "hsc")
    )
    with pytest.raises(ConfigurationError, match="call load"):
        InProcessAdapter(TINY, "tiny").model  # noqa: B018


def test_in_process_without_the_service_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vim_embed.weights.load", None)
    with pytest.raises(ServiceNotInstalledError, match=r'pip install "vim-embed\[service\]"'):
        InProcessAdapter(TINY, "tiny").load()


def test_before_load() -> None:
    with pytest.raises(ConfigurationError, match=r"call load\(\) first"):
        RemoteAdapter(TINY, "tiny").embed_for_mode({"hsc": rgb(1)}, "hsc")
