"""The GPU benchmark's logic on a CPU: what is compared, what is left out, what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from support.fixtures_vim import DATA
from vim_embed.bench import command as bench_command
from vim_embed.bench import gpu as gpu_bench
from vim_embed.bench import rivals as gpu_rivals
from vim_embed.bench.cuda_meter import Call, CudaMeter, percentile
from vim_embed.bench.gpu import Case, Figures, Line, cases_of, run
from vim_embed.bench.kinds import Forward, Kind, RivalMissing
from vim_embed.bench.rivals import VIMS
from vim_embed.bench.vit_rivals import PROXIES
from vim_embed.cli import main
from vim_embed.weights.load import load_model

CPU = torch.device("cpu")


@dataclass(frozen=True)
class FakeMeter(CudaMeter):
    """Computes on the CPU; `timed` has the shapes that were timed."""

    device: torch.device = CPU
    timed: list[tuple[int, ...]] = field(default_factory=list)

    def clear(self) -> int:
        return 100 * 2**20

    def peak_mib(self, call: Call, held: int) -> float:
        call()
        return 500 - held / 2**20

    def captured(self, call: Call) -> tuple[Callable[[], object], Tensor]:
        out = torch.full_like(call(), torch.nan)
        return (lambda: out.copy_(call())), out

    def times(self, replay: Callable[[], object], pixels: Tensor, seconds: float) -> list[float]:
        self.timed.append(tuple(pixels.shape))
        return [2.0] * 98 + [3.0, 9.0]


def embed(pixels: Tensor) -> Tensor:
    return pixels.flatten(2).sum(2)


def maker(factor: float) -> Callable[..., Forward]:
    return lambda *_, **__: lambda pixels: factor * embed(pixels)


def missing(*_: object) -> Forward:
    raise RivalMissing("timm is not installed: pip install timm")


def full(*_: object) -> Forward:
    raise torch.OutOfMemoryError("no room")


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> FakeMeter:
    compares(monkeypatch, 1 + 2**-20)
    monkeypatch.setattr(gpu_bench, "_without_tf32", lambda: None)
    return FakeMeter()


def compares(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Our forwards give `factor` times the reference's numbers."""
    rivals = {"good": maker(1), "wrong": maker(1.1), "DeiT": missing, "big": full}
    vims = Kind(VIMS.models, lambda *_: embed, maker(factor), rivals)
    own = {"eager": maker(1), "timm": maker(5)}
    sets = {"eager": frozenset({"eager"}), "apart": frozenset({"timm"})}
    proxies = Kind(PROXIES.models, lambda *_: embed, maker(factor), own, **sets)
    monkeypatch.setattr(gpu_bench, "KINDS", (vims, proxies))


CASE = Case("vim-tiny", "float16", 4, 32)
RIVALS = ("good", "wrong", "DeiT", "big")


def test_a_line(meter: FakeMeter) -> None:
    (line,) = run([CASE], rivals=RIVALS, meter=meter)
    assert isinstance(line.ours, Figures)
    assert (line.ours.rate, line.ours.p50, line.ours.p99) == (2000.0, 2.0, 3.0)
    assert line.ours.peak == 400
    assert line.ours.error == pytest.approx(2**-20, rel=0.01)
    assert isinstance(line.rivals["good"], Figures)
    assert "is over 4.5e-03: not timed" in str(line.rivals["wrong"])
    assert line.rivals["DeiT"] == "timm is not installed: pip install timm"
    assert line.rivals["big"] == "out of memory"
    assert len(meter.timed) == 2


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_wrong_numbers_are_not_timed(
    meter: FakeMeter, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    compares(monkeypatch, factor)
    (line,) = run([CASE], rivals=RIVALS, meter=meter)
    assert not line.ok
    assert "not timed" in str(line.ours)
    assert meter.timed == []


def test_a_float32_error_that_half_precision_may_have(
    meter: FakeMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    compares(monkeypatch, 1 + 1e-4)
    lines = run([CASE, Case("vim-tiny", "float32", 1, 32)], rivals=(), meter=meter)
    assert [line.ok for line in lines] == [True, False]


def test_the_report(meter: FakeMeter) -> None:
    lines = run([CASE], rivals=RIVALS, meter=meter)
    text = gpu_bench.as_markdown(lines, {"date": "2026-11-23", "device": "H"}, RIVALS)
    assert "Measured: date 2026-11-23; device H." in text
    assert "| vim-tiny | float16 | 4 | 32² | 2000 | 2.000 | 3.000 | 400 | 9.5e-07 |" in text
    assert "1.00× (2000, 400 MiB, 0.0e+00)" in text
    assert "- DeiT, vim-tiny, float16: timm is not installed" in text
    rows = [row for row in text.splitlines() if row.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


def test_cases() -> None:
    cases = cases_of(["tiny", "vim-base"], ["fp16", "float32"], [1, 2], [224])
    assert len(cases) == 8
    assert cases[0] == Case("vim-tiny", "float16", 1, 224)
    with pytest.raises(ValueError, match="unknown model 'huge': use one of vim-tiny"):
        cases_of(["huge"], ["fp16"], [1], [224])
    with pytest.raises(ValueError, match="unknown dtype 'int8': use one of float32"):
        cases_of(["tiny"], ["int8"], [1], [224])
    with pytest.raises(ValueError, match="batches start at 1"):
        cases_of(["tiny"], ["fp16"], [0], [224])


def test_percentiles() -> None:
    times = [float(n) for n in range(1, 101)]
    assert (percentile(times, 0.5), percentile(times, 0.99)) == (50, 99)
    assert percentile([7.0], 0.99) == 7


def test_the_command_without_a_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_bench.main(["--models", "tiny"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert gpu_bench.main(["--rivals", "resnet"]) == 2
    assert "unknown rival" in capsys.readouterr().err


def test_files(
    meter: FakeMeter,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_bench, "describe_machine", lambda: {"device": "H"})
    monkeypatch.setattr(gpu_bench, "CudaMeter", lambda: meter)
    arguments = ["--models", "tiny", "--batches", "4", "--sizes", "32", "--rivals", "good,DeiT"]
    files = ["--output", str(tmp_path / "t.md"), "--json", str(tmp_path / "t.json")]
    assert gpu_bench.main([*arguments, *files]) == 0
    assert (tmp_path / "t.md").read_text() in capsys.readouterr().out
    stored = json.loads((tmp_path / "t.json").read_text())
    assert stored["lines"][0]["ours"]["rate"] == 2000
    assert stored["lines"][0]["rivals"]["DeiT"].startswith("timm")
    compares(monkeypatch, 2)
    assert gpu_bench.main(arguments) == 1
    assert gpu_bench.main([*arguments, "--output", str(tmp_path / "no" / "t.md")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_failed_line_has_no_ratios() -> None:
    text = gpu_bench.as_text(Line(CASE, "error 1e-2: not timed"), RIVALS)
    assert text.endswith("| error 1e-2: not timed |")


def test_the_servers_command(
    meter: FakeMeter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(bench_command, "describe_machine", lambda: {"device": "H"})
    monkeypatch.setattr(gpu_bench, "CudaMeter", lambda: meter)
    compares(monkeypatch, 2)
    micro = load_model("m", f"vim:{DATA / 'vim_micro.pth'}", device="cpu")
    monkeypatch.setattr(bench_command, "load_in_process", lambda *_, **__: micro)
    command = ["bench", "--dtype", "float16", "--batches", "2", "--sizes", "32", "--no-http"]
    command += ["--seconds", "0.01", "--rows", "2"]
    found = CliRunner().invoke(main, [*command, "--output", str(tmp_path / "t.md")])
    assert found.exit_code == 1, found.output
    assert isinstance(found.exception, SystemExit), found.exception
    assert "| vim-tiny | float16 | 2 | 32² | error" in (tmp_path / "t.md").read_text()
    several = ["--dtypes", "float32,float32-ieee", "--output", str(tmp_path / "t.md")]
    found = CliRunner().invoke(main, [*command, *several])
    assert [
        name for name in ("float16", "float32", "float32-ieee") if f"| {name} |" in found.output
    ] == ["float32", "float32-ieee"]
    found = CliRunner().invoke(main, [*command, "--sizes", "x"])
    assert found.exit_code == 2
    proxy = [*command, "--model", "vim-tiny-proxy", "--output", str(tmp_path / "t.md")]
    found = CliRunner().invoke(main, proxy)
    assert found.exit_code == 1
    assert "| vim-tiny-proxy | float16 | 2 | 32² | error" in found.output
    assert "| vim-tiny-proxy | float32 | 2 | " in (tmp_path / "t.md").read_text()


def test_proxies_have_rivals_of_their_own(
    meter: FakeMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One runs without a graph; timm's weights are others, so that its numbers are not compared."""
    graphs, captured = [], meter.captured

    def counted(_: FakeMeter, call: Call) -> tuple[Callable[[], object], Tensor]:
        graphs.append(call)
        return captured(call)

    monkeypatch.setattr(FakeMeter, "captured", counted)
    cases = [Case("vim-tiny-proxy", "float32", 4, 32), CASE]
    lines = run(cases, meter=meter)
    assert list(lines[0].rivals) == ["eager", "timm"]
    assert all(isinstance(found, Figures) for found in lines[0].rivals.values())
    assert len(graphs) == 2 + 3, "ours and timm, ours and two that were made"
    text = gpu_bench.as_markdown(lines, {"device": "H"})
    assert text.index("× eager") > text.index("× good")
    assert cases_of(["vim-tiny-proxy", "tiny"], ["fp16"], [1], [224])[0].model == "vim-tiny"


def test_the_reference_is_the_class_token_of_the_seeded_model() -> None:
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = gpu_rivals.seeded("vim-tiny")
    expected = model(pixels)[:, model.cls_index(5)]
    assert torch.equal(gpu_rivals.reference("vim-tiny", CPU)(pixels), expected)


@pytest.mark.parametrize("name", ["mamba_ssm", "hustvl"])
def test_public_kernels_need_a_device(name: str) -> None:
    with pytest.raises(RivalMissing, match="CUDA device"):
        VIMS.rivals[name]("vim-tiny", torch.float16, CPU, 224)


def test_a_rival_that_is_not_there() -> None:
    with pytest.raises(RivalMissing, match="no DeiT like vim-tiny-plus"):
        gpu_rivals.deit("vim-tiny-plus", torch.float16, CPU, 224)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_all_devices_are_a_device_to_bench_on() -> None:
    """The compose file says `all`, to the bench command too."""
    result = CliRunner().invoke(main, ["bench", "--device", "all", "--random-weights"])
    assert result.exit_code == 2
    assert "torch sees no CUDA device" in result.output
