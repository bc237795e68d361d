"""Remote twins of the host's own models: which served model they take, and the host's numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from client.platonic.encoders import SMALL, Small, save, served
from support.serving import running
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client import ConfigurationError, UnknownModelError
from vim_embed_client.platonic import VimAdapter, register_aliases
from vim_embed_client.platonic.aliases import TWINS
from vim_embed_client.platonic.model import Spec
from vim_embed_client.platonic.processor import ImageProcessor
from vim_embed_client.platonic.remote import find_twin

from .host_runs import Host, finish

IN_RELEASE = ("vit", "dino", "dinov3", "convnext", "ijepa")
DINO = "facebook/dinov2-with-registers-small"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the host finds its models by their names on the Hub."""
    folder = tmp_path_factory.mktemp("hub")
    for small in SMALL:
        save(small, folder)
    return folder


@pytest.fixture(scope="module")
def url(hub: Path) -> Iterator[str]:
    """A service with all of them."""
    models = tuple(served(small, hub / small.name) for small in SMALL)
    with running(create_app(Settings(models=models, device="cpu"))) as url:
        yield url


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in ("API_KEY", "WIRE", "PATIENCE", "AHEAD", "POOLING", "ROW_CACHE", "ALLOW"):
        monkeypatch.delenv(f"VIM_EMBED_{name}", raising=False)
    monkeypatch.setenv("VIM_EMBED_URL", url)


def twin(small: Small, alias: str | None = None, names: Any = None) -> VimAdapter:
    registry: dict[str, type[VimAdapter]] = {}
    register_aliases(registry.__setitem__, {small.alias: names or {small.size: small.name}})
    alias = alias or f"{small.alias}-remote-{small.size}"
    return registry[alias](small.name, small.size, alias=alias)


def of(alias: str) -> Small:
    return next(small for small in SMALL if small.alias == alias)


def test_every_twin_has_a_small_model() -> None:
    assert {small.alias for small in SMALL} == set(TWINS)


def test_twins_give_the_numbers_of_the_host_s_own_adapters(host: Host, hub: Path, url: str) -> None:
    """Real adapters, real preprocessing, the same weights, simulated galaxies."""
    asked = [[s.alias, s.size, s.name] for s in SMALL if s.alias in IN_RELEASE]
    script = (Path(__file__).parent / "host" / "compare_twins.py").read_text()
    code = f"import sys; sys.argv = ['', {json.dumps(asked)!r}]\n{script}"
    output = finish(host.start_python(hub, code, VIM_EMBED_URL=url))
    told = json.loads(output.splitlines()[-1])
    assert len(told) == len(asked)
    for name, found in told.items():
        assert found["error"] < 1e-5, name
        assert found["pixels"] == 0, name
        assert found["spread"] > 1e-2, name  # the galaxies are told apart


@pytest.mark.parametrize("small", SMALL, ids=lambda small: f"{small.alias}-{small.size}")
def test_pixels_are_those_of_transformers_own_processor(small: Small, hub: Path) -> None:
    from transformers import AutoImageProcessor

    adapter = twin(small)
    adapter.load()
    assert adapter.processor is not None
    image = np.random.default_rng(1).integers(0, 256, (96, 130, 3), dtype=np.uint8)
    own = AutoImageProcessor.from_pretrained(hub / small.name, backend="pil")
    expected = np.asarray(own(image, return_tensors="np")["pixel_values"])
    ours = ImageProcessor(adapter.processor.spec, "float32")(image)["pixel_values"]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_a_processor_resizes_and_cuts_as_the_spec_says() -> None:
    image = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    spec = Spec(32, "bicubic", (0.5,) * 3, (0.5,) * 3, resize_to=40, keep_aspect=True)
    found = ImageProcessor(spec)(image)["pixel_values"][0]
    resized = Image.fromarray(image).resize((60, 40), Image.Resampling.BICUBIC)
    assert np.array_equal(found.transpose(1, 2, 0), np.asarray(resized)[4:36, 14:46])
    squared = ImageProcessor(spec._replace(keep_aspect=False))(image)["pixel_values"][0]
    resized = Image.fromarray(image).resize((40, 40), Image.Resampling.BICUBIC)
    assert np.array_equal(squared.transpose(1, 2, 0), np.asarray(resized)[4:36, 4:36])


def test_a_missing_model_names_the_command_that_serves_it() -> None:
    absent = of("dino")._replace(size="giant", name="facebook/dinov2-with-registers-giant")
    with pytest.raises(
        UnknownModelError, match="does not serve facebook/dinov2-with-reg"
    ) as caught:
        twin(absent).load()
    fix = "--model dinov2-with-registers-giant=hf:facebook/dinov2-with-registers-giant`"
    assert f"`vim-embed-server serve {fix}" in str(caught.value)


def test_missing_sizes_name_the_command_that_serves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    small = of("dino")
    names = {"small": small.name, "base": "facebook/dinov2-with-registers-base"}
    adapter = twin(small, "dino-remote", names)
    with pytest.raises(ConfigurationError, match="lacks facebook/dinov2-with-reg") as caught:
        adapter.load()
    fix = "--model dinov2-with-registers-base=hf:facebook/dinov2-with-registers-base too"
    assert f"Start the service with {fix}" in str(caught.value)
    assert "run one size, --model dino-remote-small" in str(caught.value)
    twin(small, "dino-remote-small", names).load()
    monkeypatch.setenv("VIM_EMBED_ALLOW", "missing-sizes")
    adapter.load()


def test_a_model_of_another_kind_under_the_name_is_refused(hub: Path) -> None:
    wrong = served(of("dino"), hub / of("vit").name)
    with (
        running(create_app(Settings(models=(wrong,), device="cpu"))) as url,
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setenv("VIM_EMBED_URL", url)
        with pytest.raises(ConfigurationError, match="is a model of the family 'vit', not dinov2"):
            twin(of("dino")).load()


@pytest.mark.parametrize(
    ("name", "aliases", "source"),
    [
        ("dinov2-with-registers-small", [], "/data/dino"),
        ("mine", [DINO], "/data/dino"),
        ("mine", [], DINO),
    ],
)
def test_a_twin_is_found_by_name_alias_or_source(
    name: str, aliases: list[str], source: str
) -> None:
    entry: Any = {"name": name, "aliases": aliases, "weights": {"source": source}}
    loading = {"name": "other", "aliases": []}
    listed: Any = {"models": [loading, entry]}
    assert find_twin(listed, DINO) is entry
    assert find_twin(listed, "facebook/dinov2-base") is None


@pytest.mark.parametrize("pooling", ["mean", "max", "patch-mean", "registers", "cls"])
def test_another_pooling_by_a_setting(pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = of("dino")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    monkeypatch.setenv("VIM_EMBED_POOLING", pooling)
    adapter = twin(small)
    adapter.load()
    found = adapter.embed_for_mode({"hsc": pixels}, "hsc").numpy()
    from vim_embed_client import Client

    with Client() as client:
        expected = client.embed(pixels, model=small.name.split("/")[1], pooling=pooling)
    np.testing.assert_array_equal(found, expected.embeddings)
    assert expected.provenance.pooling == pooling
    layers = adapter.embed_all_layers_for_mode({"hsc": pixels}, "hsc")
    np.testing.assert_array_equal(layers["last_hidden_state"].numpy(), found)


@pytest.mark.parametrize("granularity", ["blocks", "all"])
def test_layers_have_the_host_s_names_and_numbers(hub: Path, granularity: str) -> None:
    """Its adapters hook the modules of transformers' own model, and pool as they pool its last."""
    import transformers

    small = of("dino")
    own: Any = transformers.Dinov2WithRegistersModel.from_pretrained(hub / small.name)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    adapter = twin(small)
    adapter.load()
    found = adapter.embed_all_layers_for_mode({"hsc": pixels}, "hsc", granularity)
    assert list(found) == adapter.get_layer_names(granularity)
    assert {"encoder.layer.0", "encoder.layer.1", "last_hidden_state"} <= found.keys()
    modules = dict(own.named_modules())
    assert found.keys() - {"last_hidden_state"} <= modules.keys()
    assert adapter.get_layer_info("all")["encoder.layer.0"] == "Dinov2WithRegistersLayer"
    expected: dict[str, torch.Tensor] = {}

    def keep(name: str, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        expected[name] = getattr(output, "last_hidden_state", output)[:, 0]

    for name in ("encoder.layer.0", "encoder.layer.1"):
        modules[name].register_forward_hook(
            lambda module, given, output, name=name: keep(name, output)
        )
    with torch.inference_mode():
        expected["last_hidden_state"] = own.eval()(pixels).last_hidden_state[:, 0]
    for name, rows in expected.items():
        torch.testing.assert_close(found[name].clone(), rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("alias", "pooling", "message"),
    [
        ("ijepa", "cls", "cannot be pooled by cls: set VIM_EMBED_POOLING to one of mean"),
        ("dino", "tokens", "VIM_EMBED_POOLING is 'tokens': use one of mean, cls"),
    ],
)
def test_a_pooling_that_there_is_not(
    alias: str, pooling: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIM_EMBED_POOLING", pooling)
    with pytest.raises(ConfigurationError, match=message):
        twin(of(alias)).load()
