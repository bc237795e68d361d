"""How fast forwards are on a GPU beside their rivals: `python -m vim_embed.bench.gpu`.

Vim beside the public kernels and DeiT, a ViT proxy beside transformers and timm.

A line is one model, dtype, batch and image size. It is timed only after the captured graph's own
output was compared with the float32 reference. Every forward is measured with nothing else on the
device: built, compared, its memory taken, timed, and freed before the next. Random weights and
images. `vim-embed-server bench` prints the same on a CUDA device; this module needs torch and
numpy alone, and transformers for proxies.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vim_embed.bench.cuda_meter import CudaMeter, describe_machine, percentile, relative
from vim_embed.bench.kinds import Forward, Kind
from vim_embed.bench.rivals import VIMS
from vim_embed.bench.vit_rivals import PROXIES
from vim_embed.types.devices import DTYPES, is_ieee

KINDS = (VIMS, PROXIES)
_SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# Relative L2 of the result against the float32 reference. Half as much again as the tests allow
# for all final tokens: one token varies more than 197. The public kernels may have more.
BARS = {"float32": 1e-5, "float32-ieee": 1e-5, "float16": 3e-3, "bfloat16": 3e-2}
_LENIENCE = 1.5
_PROBES = 2  # images that are compared

NOTES = """\
images/s: batch / p50. p50, p99: milliseconds of a graph replay by CUDA events, over 20 to 300 \
replays with changing images; float32 images on the device to the normed class token, of a proxy \
to the mean token. Peak: what \
torch's allocator holds at most during one forward, in MiB: weights in the dtype of the \
computation, float32 images, working buffers, cuBLAS workspaces; nothing else is on the device. \
Error: its relative L2 against the float32 reference, taken from the graph that \
is timed. A ratio is ours over theirs, images/s; each of them ran in a graph of its own, in this \
run, but transformers, which ran eagerly. mamba_ssm: this project's backend on the public \
kernels; hustvl: the original layout and calls on them. DeiT, timm: timm's, SDPA."""


class ParityError(RuntimeError):
    """Numbers that are not those of the reference."""


@dataclass(frozen=True)
class Case:
    """What a line is about."""

    model: str
    dtype: str
    batch: int
    size: int


@dataclass(frozen=True)
class Figures:
    """One forward: rate in images/s, milliseconds, MiB, and relative L2 (None: not compared)."""

    rate: float
    p50: float
    p99: float
    peak: float
    error: float | None


@dataclass(frozen=True)
class Line:
    """Ours, and each rival's figures or the reason why there are none."""

    case: Case
    ours: Figures | str
    rivals: dict[str, Figures | str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return isinstance(self.ours, Figures)


def measure(
    make: Callable[[], Forward],
    case: Case,
    meter: CudaMeter,
    *,
    expected: Tensor | None,
    bar: float,
    seconds: float,
    graph: bool = True,
) -> Figures:
    """Build, compare, take the memory, time. Raises ParityError before anything is timed.

    expected: the reference's class tokens of the probes, or None for a model of other weights.
    """
    held = meter.clear()
    forward = make()
    pixels = meter.images(case.batch, case.size)
    rows = min(_PROBES, case.batch)
    pixels[:rows] = probes(meter, case.size)[:rows]
    call = partial(forward, pixels)
    peak = meter.peak_mib(call, held)
    replay, out = meter.captured(call) if graph else (call, call())
    replay()
    error = None
    if expected is not None:
        error = relative(out[:rows], expected[:rows])
        if not error <= bar:
            raise ParityError(f"error {error:.1e} is over {bar:.1e}: not timed")
    times = meter.times(replay, pixels, seconds)
    p50 = percentile(times, 0.5)
    return Figures(1e3 * case.batch / p50, p50, percentile(times, 0.99), peak, error)


def probes(meter: CudaMeter, size: int) -> Tensor:
    """The images that are compared."""
    return meter.images(_PROBES, size, seed=7)


def measure_line(
    case: Case, meter: CudaMeter, expected: Tensor, rivals: Iterable[str], seconds: float
) -> Line:
    """Ours, then the rivals; a fault of one is its cell's text."""
    kind = kind_of(case.model)

    def cell(name: str | None, bar: float, own: Tensor | None) -> Figures | str:
        maker = kind.rivals[name] if name else partial(kind.ours, ieee=is_ieee(case.dtype))
        make = partial(maker, case.model, DTYPES[case.dtype], meter.device, case.size)
        graph = name not in kind.eager
        try:
            return measure(make, case, meter, expected=own, bar=bar, seconds=seconds, graph=graph)
        except torch.OutOfMemoryError:
            return "out of memory"
        except (RuntimeError, ValueError) as error:  # a rival may fail in ways of its own
            return str(error).split("\n")[0]

    bar = BARS[case.dtype]
    ours = cell(None, bar, expected)
    if isinstance(ours, str):
        return Line(case, ours)
    compared = {n: None if n in kind.apart else expected for n in rivals}
    return Line(case, ours, {n: cell(n, _LENIENCE * bar, own) for n, own in compared.items()})


def kind_of(model: str) -> Kind:
    """That has a model of this name."""
    return next(kind for kind in KINDS if model in kind.models)


def _chosen(kind: Kind, rivals: Sequence[str] | None) -> list[str]:
    """Those of a kind's rivals that are asked for; None: all."""
    return [name for name in kind.rivals if rivals is None or name in rivals]


def run(
    cases: Sequence[Case],
    *,
    rivals: Sequence[str] | None = None,
    seconds: float = 1.0,
    meter: CudaMeter | None = None,
    progress: Callable[[Line], object] = lambda line: None,
) -> list[Line]:
    """Measure every case; `progress` sees each line as it is done."""
    meter = meter or CudaMeter()
    _without_tf32()
    expected: dict[tuple[str, int], Tensor] = {}
    lines = []
    for case in cases:
        key, kind = (case.model, case.size), kind_of(case.model)
        if key not in expected:
            meter.clear()
            made = kind.reference(case.model, meter.device)
            expected[key] = made(probes(meter, case.size)).cpu()
            del made
        own = _chosen(kind, rivals)
        lines.append(measure_line(case, meter, expected[key], own, seconds))
        progress(lines[-1])
    return lines


def _without_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def cases_of(
    models: Iterable[str], dtypes: Iterable[str], batches: Iterable[int], sizes: Iterable[int]
) -> list[Case]:
    """Every combination, by kind. Raises ValueError for an unknown name, naming the known."""
    known = [name for kind in KINDS for name in kind.models]
    models = [name if name in known else f"vim-{name}" for name in models]
    dtypes = dtypes_of(dtypes)
    batches, sizes = list(batches), list(sizes)
    unknown = [name.removeprefix("vim-") for name in models if name not in known]
    if unknown:
        raise ValueError(f"unknown model {unknown[0]!r}: use one of {', '.join(known)}")
    if any(batch < 1 for batch in batches) or any(size < 16 for size in sizes):
        raise ValueError("batches start at 1, image sizes at 16 pixels")
    models.sort(key=lambda name: KINDS.index(kind_of(name)))
    return [Case(m, d, b, s) for s in sizes for m in models for d in dtypes for b in batches]


def dtypes_of(names: Iterable[str]) -> list[str]:
    """The dtypes by their full names, each once. Raises ValueError for one that is unknown."""
    found = list(dict.fromkeys(_SHORT.get(name, name) for name in names))
    unknown = [name for name in found if name not in DTYPES]
    if unknown:
        raise ValueError(f"unknown dtype {unknown[0]!r}: use one of {', '.join(DTYPES)}")
    return found


def as_text(line: Line, rivals: Sequence[str]) -> str:
    """One row of the table."""
    case, ours = line.case, line.ours
    cells = [case.model, case.dtype, str(case.batch), f"{case.size}²"]
    if isinstance(ours, str):
        return f"| {' | '.join([*cells, ours])} |"
    assert ours.error is not None
    cells += [f"{ours.rate:.0f}", f"{ours.p50:.3f}", f"{ours.p99:.3f}", f"{ours.peak:.0f}"]
    cells.append(f"{ours.error:.1e}")
    for name in rivals:
        their = line.rivals[name]
        if isinstance(their, str):
            cells.append("–")
        else:
            error = "" if their.error is None else f", {their.error:.1e}"
            about = f"{their.rate:.0f}, {their.peak:.0f} MiB{error}"
            cells.append(f"{ours.rate / their.rate:.2f}× ({about})")
    return f"| {' | '.join(cells)} |"


def heading(rivals: Sequence[str]) -> str:
    """The head of the table, two rows."""
    names = ["model", "dtype", "batch", "pixels", "images/s", "p50 ms", "p99 ms", "peak MiB"]
    names += ["error", *(f"× {name} (its images/s, peak, error)" for name in rivals)]
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def as_markdown(
    lines: Sequence[Line], machine: Mapping[str, str], rivals: Sequence[str] | None = None
) -> str:
    """The whole report: machine, a table a kind, what was not measured and why, how to read it."""
    shown = "; ".join(f"{key} {value}" for key, value in machine.items())
    parts = [f"Measured: {shown}."]
    for kind in KINDS:
        own = [line for line in lines if line.case.model in kind.models]
        chosen = _chosen(kind, rivals)
        if own:
            parts.append("\n".join([heading(chosen), *(as_text(x, chosen) for x in own)]))
    return "\n\n".join([*parts, notes(lines)]) + "\n"


def notes(lines: Sequence[Line]) -> str:
    """What was not measured and why, and how to read a table."""
    missing = sorted(
        {
            f"- {name}, {line.case.model}, {line.case.dtype}: {their}"
            for line in lines
            for name, their in line.rivals.items()
            if isinstance(their, str)
        }
    )
    return "\n\n".join(filter(None, ["\n".join(missing), NOTES]))


def _print(text: str) -> None:
    print(text, flush=True)


def measured(
    cases: Sequence[Case],
    *,
    rivals: Sequence[str] | None = None,
    seconds: float = 1.0,
    echo: Callable[[str], object] = _print,
) -> list[Line]:
    """`run`, each line printed as it is done. Raises ValueError without a CUDA device."""
    if not torch.cuda.is_available():
        raise ValueError("no CUDA device is available: check the driver and that torch has CUDA")
    before: Kind | None = None

    def show(line: Line) -> None:
        nonlocal before
        kind = kind_of(line.case.model)
        chosen = _chosen(kind, rivals)
        if kind is not before:
            echo(("\n" if before else "") + heading(chosen))
        before = kind
        echo(as_text(line, chosen))

    return run(cases, rivals=rivals, seconds=seconds, progress=show)


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between. Raises ValueError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{text!r} is not whole numbers with commas between, as 1,32") from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; exit code 1 if a configuration failed its comparison, 2 for bad input."""
    known = [name for kind in KINDS for name in kind.rivals]
    parser = argparse.ArgumentParser(
        prog="python -m vim_embed.bench.gpu", description=main.__doc__, epilog=NOTES
    )
    parser.add_argument("--models", default="vim-tiny,vim-small,vim-base")
    parser.add_argument("--dtypes", default="float16", help=", ".join(DTYPES))
    parser.add_argument("--batches", type=numbers, default=[1, 32, 128, 256])
    parser.add_argument("--sizes", type=numbers, default=[224], help="pixels of a side")
    parser.add_argument("--rivals", default=",".join(known), help="empty for none")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing, a forward")
    parser.add_argument("--output", type=Path, help="write the table there (Markdown)")
    parser.add_argument("--json", type=Path, dest="json_output", help="write the figures there")
    given = parser.parse_args(argv)
    rivals = [name for name in given.rivals.split(",") if name]
    try:
        if set(rivals) - set(known):
            raise ValueError(f"unknown rival in {given.rivals!r}: use {', '.join(known)}")
        for path in (given.output, given.json_output):
            if path is not None and not path.parent.is_dir():
                raise ValueError(f"{path.parent} is not a folder: make it first")
        cases = cases_of(
            given.models.split(","), given.dtypes.split(","), given.batches, given.sizes
        )
        lines = measured(cases, rivals=rivals, seconds=given.seconds)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    machine = describe_machine()
    text = as_markdown(lines, machine, rivals)
    _print("\n" + text)
    if given.output is not None:
        given.output.write_text(text, encoding="utf-8")
    if given.json_output is not None:
        content = {"machine": machine, "lines": [asdict(line) for line in lines], "notes": NOTES}
        given.json_output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0 if all(line.ok for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
