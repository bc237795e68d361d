"""The adapters by themselves: the host's contract, both kinds side by side, faults, imports."""

from __future__ import annotations

import inspect
import json
import pickle
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from client.fake_service import DIM, LAYERS, SIZE, FakeService, embed_rows, refuse
from client.fake_service import serve as serve_fake
from support.serving import running
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client import (
    BadAnswerError,
    ConfigurationError,
    InputError,
    NotReadyError,
    ProvenanceChangedError,
    ServerUnreachableError,
    ServiceNotInstalledError,
    UnexpectedStatusError,
    UnknownModelError,
)
from vim_embed_client.platonic import (
    ALIASES,
    InProcessAdapter,
    RemoteAdapter,
    VimAdapter,
    register_aliases,
    requirements,
)
from vim_embed_client.platonic import remote as remote_module
from vim_embed_client.platonic.adapter import InProcessProxyAdapter, RemoteProxyAdapter
from vim_embed_client.platonic.model import Spec
from vim_embed_client.platonic.processor import ImageProcessor

TINY = "hustvl/Vim-tiny-midclstok"
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


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from outside; services that other tests used are not waited for."""
    for name in ("URL", "API_KEY", "WIRE", "MODELS", "PATIENCE", "DTYPE", "EXACT"):
        monkeypatch.delenv(f"VIM_EMBED_{name}", raising=False)
    monkeypatch.setenv("VIM_EMBED_ALLOW", "missing-sizes")  # most services here have one size
    monkeypatch.setenv("VIM_EMBED_DEVICE", "cpu")
    monkeypatch.setattr(remote_module, "_seen", set())
    monkeypatch.setattr(remote_module, "_POLL_S", 0.02)


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


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    """A service with faults on demand."""
    service = FakeService()
    with serve_fake(service.app()) as url:
        monkeypatch.setenv("VIM_EMBED_URL", url)
        yield service


def rgb(rows: int, size: int = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(0, 256, (rows, 3, size, size), generator=generator, dtype=torch.uint8)


def loaded() -> RemoteAdapter:
    adapter = RemoteAdapter("vim-tiny", "tiny", alias="vim-remote")
    adapter.load()
    return adapter


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


def test_a_remote_run_never_imports_the_service_package(fake: FakeService) -> None:
    code = (
        "import json, sys, torch\n"
        "from vim_embed_client.platonic import RemoteAdapter\n"
        "a = RemoteAdapter('vim-tiny', 'tiny', alias='vim-remote'); a.load()\n"
        f"a.embed_for_mode({{'hsc': torch.zeros(2, 3, {SIZE}, {SIZE}) + 1}}, 'hsc')\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = json.loads(found.stdout.splitlines()[-1])
    assert not {name.partition(".")[0] for name in loaded} & {"vim_embed", "transformers"}


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


def test_amp_before_load(fake: FakeService) -> None:
    adapter = RemoteAdapter("vim-tiny", "tiny", alias="vim-remote")
    adapter.enable_amp()
    with pytest.raises(ConfigurationError, match="no half-precision twin of vim-tiny") as caught:
        adapter.load()
    assert "--model vim-tiny-float16" in str(caught.value)


def test_load_says_what_will_answer_and_what_is_missing(
    fake: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded()
    output = capsys.readouterr().out
    assert "[vim-remote tiny] vim-tiny at http://" in output
    assert "sha256:aaaa" in output
    assert "reference on cpu in float32, pooling mean; RANDOM WEIGHTS" in output
    assert "the service lacks hustvl/Vim-small-midclstok, hustvl/Vim-base-midclstok" in output


def test_missing_sizes_are_refused_before_hours_are_spent(
    fake: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIM_EMBED_ALLOW")
    with pytest.raises(ConfigurationError, match=r"lacks hustvl/Vim-small-midclstok") as caught:
        loaded()
    assert "set VIM_EMBED_ALLOW=missing-sizes" in str(caught.value)
    RemoteAdapter("vim-tiny", "tiny").load()  # no alias: no experiment over all sizes
    monkeypatch.setenv("VIM_EMBED_ALLOW", "sizes")
    with pytest.raises(ConfigurationError, match="use polars-2 or missing-sizes"):
        loaded()


@pytest.mark.parametrize(
    ("found", "refused"), [("2.0.0", True), ("2.1.0rc1", True), ("1.44.2", False), ("10.0", True)]
)
def test_polars_2_is_refused_at_load(
    fake: FakeService, monkeypatch: pytest.MonkeyPatch, found: str, refused: bool
) -> None:
    monkeypatch.setattr(requirements, "version", lambda name: found)
    if not refused:
        loaded()
        return
    with pytest.raises(ConfigurationError, match=f"polars {found}: both versions of platonic"):
        loaded()
    monkeypatch.setenv("VIM_EMBED_ALLOW", "polars-2,missing-sizes")
    loaded()


def test_a_model_that_failed_to_load_counts_as_missing(fake: FakeService) -> None:
    listed: Any = {
        "models": [
            {"name": "a", "aliases": ["x/a"], "state": "ready"},
            {"name": "b", "aliases": [], "state": "failed"},
            {"name": "c", "aliases": [], "state": "loading"},
        ]
    }
    assert remote_module.missing_models(listed, ["x/a", "b", "c", "d"]) == ["b", "d"]


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


def test_load_without_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIM_EMBED_URL", "http://127.0.0.1:9")
    with pytest.raises(ServerUnreachableError, match="vim-embed-server serve"):
        loaded()


def test_load_with_an_unknown_model(fake: FakeService) -> None:
    with pytest.raises(UnknownModelError, match=r"loaded: vim-tiny.*start the service with"):
        RemoteAdapter("vim-huge", "huge").load()


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ("loading", NotReadyError, "still loading.*vim-embed health"),
        ("failed", ConfigurationError, "failed to load.*no such file"),
    ],
)
def test_load_of_a_model_that_is_not_ready(
    fake: FakeService,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    error: type[Exception],
    message: str,
) -> None:
    from client import fake_service

    changed = fake_service.entry() | {"state": state, "reason": "no such file"}
    monkeypatch.setattr(fake_service, "entry", lambda: changed)
    with pytest.raises(error, match=message):
        loaded()


def test_a_wrong_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    def refuse_all(request: Any) -> PlainTextResponse:
        return PlainTextResponse("no", 401)

    with serve_fake(Starlette(routes=[Route("/{path:path}", refuse_all)])) as url:
        monkeypatch.setenv("VIM_EMBED_URL", url)
        with pytest.raises(UnexpectedStatusError, match="set VIM_EMBED_API_KEY"):
            loaded()


def test_the_key_is_sent(fake: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIM_EMBED_API_KEY", "secret")
    loaded().embed_for_mode({"hsc": rgb(1)}, "hsc")
    assert fake.seen[-1].headers["authorization"] == "Bearer secret"


def test_in_process_without_the_service_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vim_embed.weights.load", None)
    with pytest.raises(ServiceNotInstalledError, match=r'pip install "vim-embed\[service\]"'):
        InProcessAdapter(TINY, "tiny").load()


def test_rows_keep_their_order_in_split_batches(fake: FakeService) -> None:
    pixels = rgb(200)
    found = loaded().embed_for_mode({"hsc": pixels}, "hsc")
    assert [seen.rows for seen in fake.seen].count(64) == 3
    np.testing.assert_allclose(found.numpy(), embed_rows(pixels.numpy()), rtol=1e-6)


def test_integers_of_an_arrow_cache_travel_as_uint8(fake: FakeService) -> None:
    adapter = loaded()
    plain = adapter.embed_for_mode({"hsc": rgb(3)}, "hsc")
    assert torch.equal(adapter.embed_for_mode({"hsc": rgb(3).long()}, "hsc"), plain)
    assert fake.seen[-1].dtype == "uint8"
    with pytest.raises(InputError, match="must be RGB from 0 to 255, got 0 to 300"):
        adapter.embed_for_mode({"hsc": torch.full((1, 3, 4, 4), 300) * torch.eye(4).long()}, "hsc")


def test_half_floats_on_the_wire(fake: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIM_EMBED_WIRE", "float16")
    loaded().embed_for_mode({"hsc": torch.randn(2, 3, SIZE, SIZE)}, "hsc")
    assert fake.seen[-1].dtype == "float16"


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"hsc": torch.full((2, 3, 4, 4), float("nan"))}, "NaN or infinite"),
        ({"hsc": torch.zeros(3, 4, 4)}, r"shape \(B, 3, H, W\)"),
        ({"jwst": torch.zeros(1, 3, 4, 4)}, "the batch has no 'hsc', but 'jwst'"),
    ],
)
def test_pixels_that_cannot_be_embedded(
    fake: FakeService, batch: dict[str, torch.Tensor], message: str
) -> None:
    adapter = loaded()
    with pytest.raises(InputError, match=message):
        adapter.embed_for_mode(batch, "hsc")
    assert not fake.seen


def test_before_load() -> None:
    with pytest.raises(ConfigurationError, match=r"call load\(\) first"):
        RemoteAdapter(TINY, "tiny").embed_for_mode({"hsc": rgb(1)}, "hsc")


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_zero_and_nan_rows_end_the_run(
    fake: FakeService, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    from client import fake_service

    def spoiled(pixels: Any, **options: Any) -> Any:
        embedded = embed_rows(pixels, **options)
        embedded[1] = value
        return embedded

    adapter = loaded()
    monkeypatch.setattr(fake_service, "embed_rows", spoiled)
    with pytest.raises(BadAnswerError, match=r"last_hidden_state of rows \[1\] is zero or not"):
        adapter.embed_for_mode({"hsc": rgb(3)}, "hsc")
    with pytest.raises(BadAnswerError, match=r"rows \[1\]"):
        adapter.embed_all_layers_for_mode({"hsc": rgb(3)}, "hsc")


def test_layers_of_the_wire_keep_their_order(fake: FakeService) -> None:
    layers = loaded().embed_all_layers_for_mode({"hsc": rgb(2)}, "hsc")
    assert list(layers) == LAYERS
    assert layers["last_hidden_state"].shape == (2, DIM)


@pytest.mark.parametrize("code", ["not_ready", "draining", "queue_full"])
def test_a_service_that_goes_away_is_waited_for(
    fake: FakeService, capsys: pytest.CaptureFixture[str], code: str
) -> None:
    adapter = loaded()
    status = 429 if code == "queue_full" else 503
    fake.faults.extend([refuse(status, code, "gone", retry_after="0")] * 5)
    found = adapter.embed_for_mode({"hsc": rgb(4)}, "hsc")
    np.testing.assert_allclose(found.numpy(), embed_rows(rgb(4).numpy()), rtol=1e-6)
    assert capsys.readouterr().out.count("is away") == 1


def test_patience_has_an_end(fake: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIM_EMBED_PATIENCE", "0.1")
    adapter = loaded()
    fake.always = refuse(503, "draining", "shutting down", retry_after="0")
    with pytest.raises(Exception, match="shutting down"):
        adapter.embed_for_mode({"hsc": rgb(1)}, "hsc")


@pytest.mark.parametrize("value", ["soon", "-1", "inf"])
def test_an_unusable_patience(
    fake: FakeService, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("VIM_EMBED_PATIENCE", value)
    with pytest.raises(ConfigurationError, match="VIM_EMBED_PATIENCE"):
        loaded()


def test_an_unusable_wire(fake: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIM_EMBED_WIRE", "int4")
    with pytest.raises(ConfigurationError, match="VIM_EMBED_WIRE is 'int4': use one of uint8"):
        loaded()


@pytest.mark.parametrize("changed", ["Weights-Digest", "Preprocessing-Digest", "Backend"])
def test_a_service_that_comes_back_changed_ends_the_run(fake: FakeService, changed: str) -> None:
    adapter = loaded()
    adapter.embed_for_mode({"hsc": rgb(2)}, "hsc")
    fake.provenance[changed] = "sha256:other"
    name = changed.lower().replace("-", "_")
    with pytest.raises(ProvenanceChangedError, match=rf"changed during the run \({name}\)"):
        adapter.embed_for_mode({"hsc": rgb(2)}, "hsc").numpy()


SPEC = Spec(32, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.5))


def image(height: int = 48, width: int = 40) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_uint8_loses_nothing_against_the_float_pipeline() -> None:
    from transformers import ViTImageProcessorPil

    reference = ViTImageProcessorPil(
        size={"height": 32, "width": 32},
        resample=Image.Resampling.BILINEAR,
        image_mean=list(SPEC.mean),
        image_std=list(SPEC.std),
    )
    expected = reference(image(), return_tensors="np")["pixel_values"]
    exact = ImageProcessor(SPEC, "float32")(image())["pixel_values"]
    np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-6)
    bytes_ = ImageProcessor(SPEC)(image())["pixel_values"]
    assert bytes_.dtype == np.uint8
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (SPEC.mean, SPEC.std))
    np.testing.assert_allclose((bytes_ / 255 - mean) / std, expected, rtol=0, atol=1e-6)
    half = ImageProcessor(SPEC, "float16")(image())["pixel_values"]
    assert half.dtype == np.float16


def test_the_processor_takes_what_the_host_passes() -> None:
    processor = pickle.loads(pickle.dumps(ImageProcessor(SPEC)))
    array = processor(image(), return_tensors="pt")["pixel_values"]
    assert array.dtype == torch.uint8
    assert array.shape == (1, 3, 32, 32)
    pillow = processor(Image.fromarray(image()), return_tensors="pt")["pixel_values"]
    assert torch.equal(pillow, array)
    assert processor([image(), image(9, 9)])["pixel_values"].shape == (2, 3, 32, 32)
    flipped = processor(image()[..., ::-1])["pixel_values"]
    assert np.array_equal(flipped[:, ::-1], array.numpy())
    with pytest.raises(InputError, match=r"got float32 \(4, 4, 3\)"):
        processor(np.zeros((4, 4, 3), np.float32))


class ReleasePreprocess:
    """The arguments of `pu.preprocess.PreprocessHF` in 0.1.0."""

    def __init__(self, modes: Any, autoproc: Any, resize: bool = False) -> None:
        self.given = {"modes": modes, "autoproc": autoproc, "resize": resize}


class HeadPreprocess:
    """The arguments of `pu.preprocess.PreprocessHF` in the development head."""

    def __init__(
        self,
        modes: Any,
        autoproc: Any,
        resize: bool = True,
        resize_mode: str = "match",
        alias: str | None = None,
    ) -> None:
        self.given = {"modes": modes, "autoproc": autoproc, "resize": resize}
        self.given |= {"resize_mode": resize_mode, "alias": alias}


@pytest.mark.parametrize(
    ("cls", "more"),
    [
        (ReleasePreprocess, {}),
        (HeadPreprocess, {"resize_mode": "match", "alias": "vim-remote"}),
    ],
)
def test_the_host_s_own_preprocessor_is_built_for_either_version(
    fake: FakeService, monkeypatch: pytest.MonkeyPatch, cls: type, more: dict[str, Any]
) -> None:
    package, module = types.ModuleType("pu"), types.ModuleType("pu.preprocess")
    module.PreprocessHF = cls  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pu", package)
    monkeypatch.setitem(sys.modules, "pu.preprocess", module)
    adapter = loaded()
    made = adapter.get_preprocessor(iter(["hsc", "jwst"]), resize=True, resize_mode="match")
    given = {"modes": ["hsc", "jwst"], "autoproc": adapter.processor, "resize": True}
    assert made.given == given | more
