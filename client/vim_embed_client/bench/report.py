"""What `vim-embed bench` reports: figures of a round, their medians, and the table."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vim_embed_client.bench.load_generator import Sample
from vim_embed_client.bench.server_metrics import Scrape
from vim_embed_client.results import ModelEntry

PERCENTILES = (50, 90, 99, 99.9)
TIMINGS = ("queue", "forward", "total")
REFUSALS = ("queue_full", "not_ready", "draining", "worker_failed")

Round = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One setting of a sweep. rate: requests a second of all clients, or None."""

    clients: int
    rows: int
    rate: float | None = None

    def __str__(self) -> str:
        noun = "client" if self.clients == 1 else "clients"
        at = "" if self.rate is None else f" at {self.rate:g} requests/s"
        rows = "1 row" if self.rows == 1 else f"{self.rows} rows"
        return f"{self.clients} {noun} × {rows}{at}"


def round_of(
    samples: Sequence[Sample], bare: dict[str, Any] | None, batches: Scrape | None
) -> Round:
    """The figures of one round. bare: of the bare loop. batches: what the service did in it."""
    seconds = max(s.ended for s in samples) - min(s.started for s in samples)
    latencies = np.concatenate([sample.latencies for sample in samples]) * 1e3
    timing = [timing for sample in samples for timing in sample.server_timing]
    failures = sum((sample.failures for sample in samples), Counter[str]())
    refused = sum(failures[code] for code in REFUSALS)
    return {
        "http_rows_per_s": sum(sample.rows for sample in samples) / seconds,
        "bare_rows_per_s": bare["rows_per_s"] if bare else None,
        "requests": len(latencies),
        "refused": refused,
        "errors": failures.total() - refused,
        "failures": dict(failures),
        "unsent": sum(sample.unsent for sample in samples),
        "latency_ms": _percentiles(latencies),
        "server_ms": {name: _median(t.get(name, 0.0) for t in timing) for name in TIMINGS},
        "batch": batches.per_batch if batches else None,
        "bare": bare,
    }


def _percentiles(latencies: Any) -> dict[str, float | None]:
    return {
        f"p{q}": float(np.percentile(latencies, q)) if len(latencies) else None for q in PERCENTILES
    }


def _median(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def report_of(
    rounds: Mapping[Case, list[Round]],
    entry: ModelEntry,
    *,
    batch_rows: int,
    wire: str,
    seconds: float,
) -> dict[str, Any]:
    """The report: of one case, or with `cases` where several were measured."""
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "os": platform.platform(),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("vim-embed", "httpx", "numpy")},
        "model": {k: entry[k] for k in ("name", "device", "dtype", "backend")}
        | {"random_weights": entry["weights"]["random"]},
        "batch_rows": entry["limits"]["batch_rows"],
        "bare_batch_rows": batch_rows,
        "wire": wire,
        "seconds": seconds,
    }
    cases = [_case(case, found) for case, found in rounds.items()]
    return report | (cases[0] if len(cases) == 1 else {"cases": cases})


def cases_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases of a report, also if there is one only."""
    found: list[dict[str, Any]] = report.get("cases") or [report]
    return found


def _case(case: Case, rounds: list[Round]) -> dict[str, Any]:
    http = median(r["http_rows_per_s"] for r in rounds)
    bare = _median(r["bare_rows_per_s"] for r in rounds)
    batches = [r["batch"] for r in rounds if r["batch"]]
    return {
        "clients": case.clients,
        "rows": case.rows,
        "rate": case.rate,
        "http_rows_per_s": http,
        "bare_rows_per_s": bare,
        "ratio": http / bare if bare else None,
        "latency_ms": _medians([r["latency_ms"] for r in rounds]),
        "server_ms": _medians([r["server_ms"] for r in rounds]),
        "batch": _medians(batches) or None,
        **{key: sum(r[key] for r in rounds) for key in ("requests", "refused", "errors", "unsent")},
        "failures": dict(sum((Counter(r["failures"]) for r in rounds), Counter[str]())),
        "rounds": rounds,
    }


def _medians(found: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    return {name: _median(f[name] for f in found) for name in (found[0] if found else ())}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def setting(report: dict[str, Any]) -> str:
    """What was measured, and where, in a line."""
    model, machine = report["model"], report["machine"]
    weights = ", random weights" if model["random_weights"] else ""
    cases = cases_of(report)
    clients = ", ".join(str(n) for n in dict.fromkeys(case["clients"] for case in cases))
    rows = ", ".join(str(n) for n in dict.fromkeys(case["rows"] for case in cases))
    rate = cases[0]["rate"]
    at = "" if rate is None else f", {rate:g} requests/s at random moments"
    noun = "client" if clients == "1" else "clients"
    return (
        f"{model['name']} ({model['dtype']}, {model['backend']} on {model['device']}{weights}): "
        f"{clients} {noun} × {rows} {report['wire']} {'row' if rows == '1' else 'rows'}{at}, "
        f"batches of {report['batch_rows']}; {machine['cpu']}, {machine['cores']} cores"
    )


def show(report: dict[str, Any], console: Console) -> None:
    """Print a report: rounds of one case, or medians of several."""
    folds = console.is_terminal  # elsewhere a program reads the lines, in one piece each
    console.print(setting(report), soft_wrap=not folds)
    cases = cases_of(report)
    table = _of_rounds(cases[0]) if len(cases) == 1 else _of_cases(cases)
    console.print(table, width=max(console.width, _WIDEST), crop=False)  # better wide than cut
    for line in _remarks(cases):
        console.print(line, soft_wrap=not folds)


def _of_rounds(case: dict[str, Any]) -> Table:
    table = _table("round", "HTTP\nrows/s", "bare\nrows/s", *_TIMES)
    for number, measured in enumerate(case["rounds"], 1):
        rates = [measured["http_rows_per_s"], measured["bare_rows_per_s"]]
        table.add_row(str(number), *map(_cell, [*rates, *_times(measured)]))
    return table


def _of_cases(cases: Sequence[dict[str, Any]]) -> Table:
    table = _table("clients", "rows", "HTTP\nrows/s", "of\nbare", *_TIMES)
    for case in cases:
        share = "–" if case["ratio"] is None else f"{case['ratio']:.1%}"
        of_case = [str(case["clients"]), str(case["rows"]), _cell(case["http_rows_per_s"]), share]
        table.add_row(*of_case, *map(_cell, _times(case)))
    return table


def _remarks(cases: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for case in cases:
        name = "" if len(cases) == 1 else f"{Case(case['clients'], case['rows'])}: "
        if case["failures"]:
            codes = ", ".join(f"{code} {count}" for code, count in case["failures"].items())
            failed = f"{case['refused']} requests refused, {case['errors']} failed ({codes})"
            lines.append(name + failed)
        if case["unsent"]:
            lines.append(f"{name}{case['unsent']} requests never left: the service is too slow")
    best = max(cases, key=lambda case: float(case["http_rows_per_s"]))
    if best["ratio"] is not None:
        at = "" if len(cases) == 1 else f" with {Case(best['clients'], best['rows'])}"
        lines.append(
            f"HTTP gives {best['ratio']:.1%} of the bare loop{at} "
            f"({best['http_rows_per_s']:,.1f} of {best['bare_rows_per_s']:,.1f} rows/s)"
        )
    return lines


_WIDEST = 120
_TIMES = (*(f"p{q}\nms" for q in PERCENTILES), *(f"{name}\nms" for name in TIMINGS), "batch\nrows")


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _times(measured: dict[str, Any]) -> list[float | None]:
    batch = (measured["batch"] or {}).get("rows")
    return [*measured["latency_ms"].values(), *measured["server_ms"].values(), batch]


def _cell(value: float | None) -> str:
    """`1,234`, `12.3`."""
    return "–" if value is None else f"{value:,.{0 if value >= 100 else 1}f}"
