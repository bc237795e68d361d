"""Throughput and latency against the number of clients, of a report of `vim-embed bench`."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from vim_embed_client.bench.report import cases_of, setting
from vim_embed_client.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    small_print,
    styled,
    title,
)

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
_WIDTH, _AXES = 9.6, 3.3  # inches
_LEFT, _GAP, _LEGEND, _LABELS = 0.8, 0.9, 0.21, 0.6  # _LEGEND: of a line

Cases = list[dict[str, Any]]


@styled()
def throughput_figure(report: dict[str, Any]) -> Figure:
    """Rows per second on the left, latency on the right; a colour for each rows per request."""
    figure = Figure(figsize=(_WIDTH, 9), facecolor="white")
    top, foot = _words(figure, report)
    legend = _LEGEND * (1 + len(_by_rows(cases_of(report))))
    height = top + legend + _AXES + _LABELS + foot
    figure.clear()
    figure.set_size_inches(_WIDTH, height)
    _words(figure, report)
    width = (_WIDTH - _LEFT - _GAP - 0.2) / 2
    left, right = (
        figure.add_axes((x / _WIDTH, (foot + _LABELS) / height, width / _WIDTH, _AXES / height))
        for x in (_LEFT, _LEFT + width + _GAP)
    )
    _draw_rate(left, cases_of(report))
    _draw_latency(right, cases_of(report))
    return figure


def _words(figure: Figure, report: dict[str, Any]) -> tuple[float, float]:
    best = max(cases_of(report), key=lambda case: case["http_rows_per_s"])
    most = "up to " if len(cases_of(report)) > 1 else ""
    text = f"{report['model']['name']}: {most}{best['http_rows_per_s']:,.1f} rows/s over HTTP"
    if best["ratio"] is not None:
        text += f", {best['ratio']:.0%} of the bare loop"
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    how = _how(len(best["rounds"]), report["seconds"])
    when = f"{report['date']}; {versions}; {report['machine']['os']}"
    return title(figure, text, setting(report)), small_print(figure, [how, when])


def _how(rounds: int, seconds: float) -> str:
    if rounds == 1:
        return f"One round of {seconds:g} s."
    return f"Medians of {rounds} rounds of {seconds:g} s. Bars: lowest and highest round."


def _by_rows(cases: Cases) -> dict[int, Cases]:
    found: dict[int, Cases] = {}
    for case in sorted(cases, key=lambda case: (case["rows"], case["clients"])):
        found.setdefault(case["rows"], []).append(case)
    return found


def _draw_rate(axes: Any, cases: Cases) -> None:
    for number, (rows, line) in enumerate(_by_rows(cases).items()):
        middle = [case["http_rows_per_s"] for case in line]
        rounds = [[r["http_rows_per_s"] for r in case["rounds"]] for case in line]
        errors = (
            [m - min(r) for m, r in zip(middle, rounds, strict=True)],
            [max(r) - m for m, r in zip(middle, rounds, strict=True)],
        )
        axes.errorbar(
            [case["clients"] for case in line], middle, yerr=errors, fmt="-o", capsize=3,
            color=_COLOURS[number % len(_COLOURS)], lw=2, ms=6, clip_on=False,
            label=f"{_rows(rows)} a request",
        )  # fmt: skip
    bare = cases[0]["bare_rows_per_s"]
    if bare is not None:
        axes.axhline(bare, ls="--", lw=1.6, color=GREY, label="bare loop")
    axes.set_ylabel("rows per second", fontsize=11, color=INK)
    _dress(axes, cases)


def _draw_latency(axes: Any, cases: Cases) -> None:
    for number, (rows, line) in enumerate(_by_rows(cases).items()):
        for name, style in (("p50", "-o"), ("p99", "--s")):
            known = [case for case in line if case["latency_ms"][name] is not None]
            axes.plot(
                [case["clients"] for case in known],
                [case["latency_ms"][name] for case in known], style,
                color=_COLOURS[number % len(_COLOURS)], lw=2, ms=6, clip_on=False,
                label=f"{name}, {_rows(rows)}",
            )  # fmt: skip
    axes.set_ylabel("latency of a request (ms)", fontsize=11, color=INK)
    _dress(axes, cases)


def _rows(rows: int) -> str:
    return f"{rows:,} row{'s' if rows > 1 else ''}"


def _dress(axes: Any, cases: Cases) -> None:
    ticks = sorted({case["clients"] for case in cases})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(tick) for tick in ticks])
    axes.set_xlim(ticks[0] / 1.15, ticks[-1] * 1.15)
    axes.margins(y=0.08)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.set_xlabel("clients at once", fontsize=11, color=INK)
    axes.grid(color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), frameon=False, fontsize=9, ncols=2,
        handlelength=3, columnspacing=1.2,
    )  # fmt: skip
