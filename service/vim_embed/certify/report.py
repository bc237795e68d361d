"""The two files of a certificate: JSON for `serve --certificate`, Markdown for people."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from typing import Any

import numpy as np
import torch

from vim_embed import __version__
from vim_embed.certify.findings import (
    KERNEL_RATIO,
    OUTLIER_RATIO,
    cautions,
    faults,
    high_norms,
    kept_as_asked,
    outlier_channels,
    ranges,
)
from vim_embed.certify.measure import EMULATED_ROWS, Measured
from vim_embed.types.certificate import Certificate
from vim_embed.types.devices import device_name
from vim_embed_client.scoring.mknn import PLATONIC_K

Report = dict[str, Any]
HEADING = "# Precision of "  # how the page begins
_SHOWN = 8  # rows of a table


def make_report(measured: Measured, keep: float) -> Report:
    """Everything that was measured, for JSON; `certificate` is what `serve` reads.

    keep: the share of neighbours that is asked for.
    """
    info = measured.fast.info
    certificate = Certificate(
        model=info.name,
        dtype=info.dtype,
        backend=info.backend,
        device=device_name(measured.fast.device),
        weights_digest=info.weights.digest,
        preprocessing_digest=info.preprocessing.digest,
        images_digest=measured.images.digest,
        images=len(measured.images),
        k=PLATONIC_K,
        kept=tuple(one.kept for one in measured.agreements),
        speed=round(measured.speed, 3),
        faults=tuple(faults(measured)),
        version=__version__,
        torch_version=torch.__version__,
    )
    images = measured.images
    return {
        "certificate": certificate.as_dict(),
        "statement": certificate.statement(certificate.kept[0].pooling),
        "passes": not certificate.faults,
        "keeps_as_asked": kept_as_asked(measured, keep),
        "keep_neighbours": keep,
        "cautions": cautions(measured),
        "made": {
            "date": date.today().isoformat(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "system": f"{platform.system()} {platform.machine()}",
            "weights": asdict(info.weights),
            "backend_reason": info.backend_reason,
        },
        "images": {
            "source": images.source,
            "count": len(images),
            "of": images.of,
            "left_out": [{"id": one.id, "reason": one.reason} for one in images.left_out],
        },
        "neighbours": [
            {**asdict(one.kept), "first": one.first, "chance": one.permuted, "tied": one.tied}
            for one in measured.agreements
        ],
        "errors": {what: _spread(measured, what) for what in measured.errors.rows},
        "rounding": {
            "images": min(EMULATED_ROWS, len(images)),
            "alone": _number(measured.rounding),
            "found": _number(measured.kernels),
        },
        "ranges": [{**asdict(one), "share": _number(one.share)} for one in ranges(measured)],
        "outlier_channels": [asdict(one) for one in outlier_channels(measured)],
        "high_norm_tokens": asdict(high_norms(measured)),
    }


def as_json(report: Report) -> str:
    """Strictly JSON: what is not finite is null."""
    return json.dumps(report, indent=2, allow_nan=False) + "\n"


def as_markdown(report: Report) -> str:
    """The report as a page."""
    told = report["certificate"]
    verdict = "no faults were found" if report["passes"] else "**faults were found**"
    asked = "does" if report["keeps_as_asked"] else "does not"
    parts = [
        f"{HEADING}{told['model']} in {told['dtype']}\n",
        f"{report['statement']} (pooling {told['kept'][0]['pooling']}, k = {told['k']}, ± is the "
        f"longer side of a 95 % interval); {verdict}. It {asked} keep "
        f"{report['keep_neighbours']:g} of neighbours by every pooling, at the lower end of the "
        "interval.\n",
        _bullets("Faults", told["faults"]),
        _bullets("Cautions", report["cautions"]),
        _table("Neighbours kept", _NEIGHBOURS, map(_neighbour_cells, report["neighbours"])),
        "Kept is the share of float32's ten nearest neighbours (cosine) that are so in "
        f"{told['dtype']} too: MKNN of the two runs.\n",
        _table("Relative L2 error", _ERRORS, map(_error_cells, report["errors"].items())),
        _rounding(report),
        _table("Activations in float32", _RANGES, map(_range_cells, report["ranges"])),
        _outliers(report["outlier_channels"]),
        _tokens(report["high_norm_tokens"]),
        _origin(report),
    ]
    return "\n".join(part for part in parts if part)


_NEIGHBOURS = ("pooling", "kept", "95 % interval", "nearest kept", "by chance")
_ERRORS = ("of", "median", "worst", "image")
_RANGES = ("stage", "largest", "of the dtype's range", "where", "image")


def _neighbour_cells(one: Report) -> list[str]:
    span = f"{one['low']:.4f} to {one['high']:.4f}"
    return [
        one["pooling"],
        f"{one['kept']:.4f}",
        span,
        f"{one['first']:.4f}",
        f"{one['chance']:.4f}",
    ]


def _error_cells(one: tuple[str, Report]) -> list[str]:
    what, spread = one
    worst = "not finite" if spread["worst"] is None else f"{spread['worst']:.2e}"
    median = "not finite" if spread["median"] is None else f"{spread['median']:.2e}"
    return [what, median, worst, _cell(spread["image"])]


def _range_cells(one: Report) -> list[str]:
    share = f"{one['share']:.2g}"
    return [
        f"`{one['stage']}`",
        f"{one['peak']:.4g}",
        share,
        f"`{one['where']}`",
        _cell(one["image"]),
    ]


def _rounding(report: Report) -> str:
    found = report["rounding"]
    if found["alone"] is None:
        return ""
    return (
        f"Rounding alone, by the reference operations in {report['certificate']['dtype']}, makes "
        f"a median error of {found['alone']:.2e} in the tokens of {found['images']} images; this "
        f"run has {found['found']:.2e} there. Over {KERNEL_RATIO:g} times as much is a fault.\n"
    )


def _outliers(found: Sequence[Report]) -> str:
    if not found:
        return (
            f"No channel of any stage has {OUTLIER_RATIO:g} times the RMS of the median channel.\n"
        )
    rows = [
        [f"`{one['stage']}`", f"{one['ratio']:.3g}", ", ".join(map(str, one["channels"][:12]))]
        for one in found[:_SHOWN]
    ]
    heading = f"Outlier channels ({len(found)} stages)"
    return _table(heading, ("stage", "RMS over the median's", "channels"), rows)


def _tokens(found: Report) -> str:
    if not found["count"]:
        return (
            f"No token has a high norm: the largest is {found['largest']:.3g} times the median.\n"
        )
    rows = [[place, str(times)] for place, times in found["places"]]
    heading = f"High-norm tokens: {found['count']} in {found['images']} images"
    return _table(heading, ("place (row,column)", "images"), rows)


def _origin(report: Report) -> str:
    told, made, images = report["certificate"], report["made"], report["images"]
    of = f" of {images['of']:,}" if images["of"] else ""
    rows = [
        ["weights", f"{_cell(made['weights']['source'])}, {told['weights_digest']}"],
        ["preprocessing", told["preprocessing_digest"]],
        ["images", f"{images['count']:,}{of}: {_cell(images['source'])}, {told['images_digest']}"],
        ["left out", f"{len(images['left_out'])}"],
        ["backend", f"{told['backend']} ({_cell(made['backend_reason'])})"],
        ["device", told["device"]],
        ["speed", f"{told['speed']:.2f} times that of float32"],
        [
            "versions",
            f"vim-embed {told['version']}, torch {told['torch_version']}, numpy {made['numpy']}, "
            f"Python {made['python']}, {made['system']}",
        ],
        ["date", made["date"]],
    ]
    return _table("Of what, and on what", ("", ""), rows)


def _bullets(heading: str, texts: Sequence[str]) -> str:
    if not texts:
        return ""
    return f"## {heading}\n\n" + "\n".join(f"- {text}" for text in texts) + "\n"


def _table(heading: str, columns: Sequence[str], rows: Any) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return f"## {heading}\n\n" + "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _spread(measured: Measured, what: str) -> Report:
    row, worst = measured.errors.worst(what)
    return {
        "median": _number(measured.errors.median(what)),
        "worst": _number(worst),
        "row": row,
        "image": measured.images.ids[row],
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
