"""The remote adapter against a service: what it says at load, the wire, and faults."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from client.fake_service import DIM, LAYERS, SIZE, FakeService, embed_rows, refuse
from client.fake_service import serve as serve_fake
from vim_embed_client import (
    BadAnswerError,
    ConfigurationError,
    InputError,
    NotReadyError,
    ProvenanceChangedError,
    ServerUnreachableError,
    UnexpectedStatusError,
    UnknownModelError,
)
from vim_embed_client.platonic import RemoteAdapter, requirements
from vim_embed_client.platonic import remote as remote_module

from .adapters import loaded, rgb

pytestmark = pytest.mark.usefixtures("environment")


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
