"""What reaches the caller, on a CPU: by `embed`, by a real service, and which dtype to take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from support.fixtures_vim import DATA
from vim_embed.bench import command, over_http
from vim_embed.bench import gpu as gpu_bench
from vim_embed.bench.advice import advice
from vim_embed.bench.delivery import WAYS, Delivery, as_text, in_process
from vim_embed.bench.over_http import http_rate
from vim_embed.cli import main
from vim_embed.inference.embedder import Embedder
from vim_embed.settings import Settings
from vim_embed.types.certificate import Certificate, Kept
from vim_embed.weights.load import load_model

CPU = torch.device("cpu")
MODEL = f"m=vim:{DATA / 'vim_micro.pth'}"


def micro(dtype: str = "float32") -> Embedder:
    return load_model("m", f"vim:{DATA / 'vim_micro.pth'}", device="cpu", dtype=dtype)


def test_in_process() -> None:
    calls: list[tuple[str, tuple[int, ...]]] = []
    model = micro()
    embed, launch = model.embed, model.launch
    model.embed = lambda x: calls.append((str(x.dtype), x.shape)) or embed(x)  # type: ignore
    model.launch = lambda x, *o, **m: (  # type: ignore
        calls.append((str(x.dtype), tuple(x.shape))) or launch(x, *o, **m)  # type: ignore
    )
    rates = in_process(model, 3, seconds=0.01)
    size = model.info.preprocessing.image_size
    assert set(calls) >= {(d, (3, 3, size, size)) for d in ("uint8", "float32", "torch.uint8")}
    assert set(rates) == {"alone", *WAYS[:2]}
    assert min(rates.values()) > 0


def test_a_model_of_other_bands_takes_fluxes_alone() -> None:
    model = micro()
    model.info = replace(model.info, channels=5)
    shapes = []

    class Done:
        def wait(self) -> None:
            pass

    model.embed = lambda x: shapes.append((x.dtype.name, x.shape[1]))  # type: ignore
    model.launch = lambda x, options: shapes.append((str(x.dtype), x.shape[1])) or Done()  # type: ignore
    rates = in_process(model, 2, seconds=0.01)
    assert set(rates) == {"alone", WAYS[1]}
    assert set(shapes) == {("float32", 5), ("torch.float32", 5)}


def test_the_table() -> None:
    ways: dict[str, float | str] = {WAYS[0]: 50.0, WAYS[1]: 25.0, WAYS[2]: "left out by --no-http"}
    text = as_text([Delivery("m", "float32", 8, 100.0, ways)])
    assert "| m | float32 | 8 | 100.0 | 50.0 (0.500) | 25.0 (0.250) | – |" in text
    assert "- HTTP, uint8, m, float32: left out by --no-http" in text


def test_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real service with these settings alone: keys and ports of the environment are not its."""
    monkeypatch.setattr(over_http, "_WARM_UP_S", 0.1)
    monkeypatch.setenv("VIM_EMBED_API_KEYS", "a-key-of-someone-else-1234567890")
    monkeypatch.setenv("VIM_EMBED_MODELS", "vim-base=/nowhere.pth")
    settings = Settings(threads=1)
    rate = http_rate(settings, MODEL, "float32", device=CPU, rows=2, seconds=0.3)
    assert isinstance(rate, float), rate
    assert rate > 0


def test_a_service_that_does_not_start() -> None:
    why = http_rate(Settings(), "m=/nowhere.pth", "float32", device=CPU, rows=1, seconds=0.1)
    assert "/nowhere.pth" in str(why)


def certificate(kept: float, dtype: str = "float16", faults: tuple[str, ...] = ()) -> Certificate:
    of_mean = Kept(pooling="mean", kept=kept, std_error=0.0, low=kept, high=kept)
    return Certificate(
        model="m",
        dtype=dtype,
        backend="cpu",
        device="cpu",
        weights_digest="",
        preprocessing_digest="",
        images_digest="",
        images=1000,
        k=10,
        kept=(of_mean,),
        speed=2.0,
        faults=faults,
        version="",
        torch_version="",
    )


RATES = {"float32": 10.0, "float16": 30.0, "bfloat16": 20.0, "float32-ieee": 5.0}


def test_advice() -> None:
    text = advice("m", RATES, [certificate(0.995)], 0.99)
    assert text == (
        "m: float16 is the fastest of these dtypes that keeps 0.99 of the neighbours: "
        "30.0 images/s; its certificate vouches for 0.9950."
    )
    low = [certificate(0.95), certificate(0.999, "bfloat16")]
    text = advice("m", RATES, low, 0.99)
    assert "m: bfloat16 is the fastest" in text
    assert "m: float16 is 1.50 times as fast, but its certificate vouches for 0.9500" in text
    text = advice("m", RATES, [certificate(0.999, faults=("3 overflow",))], 0.99)
    assert text.splitlines() == [
        "m: float32 is the fastest of these dtypes that keeps 0.99 of the neighbours: "
        "10.0 images/s.",
        "m: bfloat16 is 2.00 times as fast, but no certificate says what it keeps "
        "(vim-embed-server certify).",
        "m: float16 is 3.00 times as fast, but its certificate found: 3 overflow.",
    ]
    assert advice("m", {"float32": 1.0}, [], 0.99) == ""
    assert advice("m", {"float16": 1.0}, [], 0.99).startswith("m: float16: no certificate")


def test_the_command_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def http(settings: Settings, model: str, dtype: str, **given: object) -> float:
        seen.append((settings.http_processes, model, dtype, given["rows"], given["device"]))
        return 7.0

    monkeypatch.setattr(command, "http_rate", http)
    asked = ["bench", "--device", "cpu", "--model", MODEL, "--seconds", "0.01", "--rows", "2"]
    dtypes = ["--dtypes", "fp32, bf16,float32,"]
    found = CliRunner().invoke(main, [*asked, *dtypes, "--http-processes", "3"])
    assert found.exit_code == 0, found.output
    assert seen == [(3, MODEL, dtype, 2, CPU) for dtype in ("float32", "bfloat16")]
    assert [line.split(" | ")[1] for line in found.output.splitlines() if "| m |" in line] == [
        "float32",
        "bfloat16",
    ]
    assert "m: float32 " in found.output
    found = CliRunner().invoke(main, [*asked, "--no-http"])
    assert "- HTTP, uint8, m, float32: left out by --no-http" in found.output
    assert len(seen) == 2
    loop = CliRunner().invoke(main, [*asked, "--json", "--wire", "float16"])
    assert json.loads(loop.output)["batch_rows"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "64"], "--sizes: no effect on a CPU"),
        (["--batches", "1", "--output", "x.md"], "--batches, --output: no effect on a CPU"),
        (["--wire", "uint8"], "--wire: no effect without --bare or --json"),
        (["--bare", "--dtypes", "float32"], "--dtypes: no effect with --bare or --json"),
        (["--json", "--no-http"], "--no-http: no effect with --bare or --json"),
        (["--dtypes", "int8"], "unknown dtype 'int8'"),
        (["--dtypes", ","], "--dtypes names no dtype"),
        (["--rows", "0"], "0 is not in the range"),
        (["--seconds", "-1"], "-1.0 is not in the range"),
    ],
)
def test_options_without_effect_are_errors(options: list[str], message: str) -> None:
    found = CliRunner().invoke(main, ["bench", "--device", "cpu", "--model", MODEL, *options])
    assert found.exit_code == 2
    assert message in found.output


def test_a_certificate_of_no_measured_dtype(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    asked = ["bench", "--device", "cpu", "--model", MODEL, "--certificate", str(path)]
    found = CliRunner().invoke(main, [*asked, "--dtypes", "float32"])
    assert found.exit_code == 2
    assert "cannot be read" in found.output


def test_missing_weights_are_told_before_anything_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "in_process", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(gpu_bench, "measured", lambda *_, **__: pytest.fail("timed"))
    asked = ["bench", "--device", "cpu", "--model", "m=/nowhere.pth", "--no-http"]
    found = CliRunner().invoke(main, asked)
    assert found.exit_code == 1
    assert "/nowhere.pth" in found.output


@pytest.mark.parametrize(
    ("device", "processes", "rate", "told"),
    [
        ("cuda", 1, 80.0, True),
        ("cuda", 1, 99.0, False),
        ("cuda", 4, 80.0, False),
        ("cpu", 1, 80.0, False),
    ],
)
def test_http_that_needs_processes(device: str, processes: int, rate: float, *, told: bool) -> None:
    settings = Settings(models=(MODEL,), device="cpu", http_processes=processes)
    plan = replace(command.Plan.of(settings, None, 1, 1.0), device=torch.device(device))
    found = [Delivery("m", "float32", 8, 100.0, {WAYS[2]: rate})]
    assert ("--http-processes 4" in command._advice(plan, found)) == told
    assert command._advice(plan, [Delivery("m", "float32", 8, 100.0, {WAYS[2]: "none"})]) == ""


def test_kernels_of_a_vim_with_weights_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "report", lambda name, **_: f"kernels of {name}")
    monkeypatch.setattr(command, "load_in_process", lambda *_, **__: micro())
    asked = ["bench", "--device", "cpu", "--no-http", "--seconds", "0", "--rows", "1"]
    for model in (f"vim-tiny={DATA / 'vim_micro.pth'}", "hustvl/Vim-tiny-midclstok"):
        found = CliRunner().invoke(main, [*asked, "--model", model])
        assert "kernels of vim-tiny" in found.output, found.output
    assert "kernels" not in CliRunner().invoke(main, [*asked, "--model", MODEL]).output
