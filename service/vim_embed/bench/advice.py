"""Which of the measured dtypes to take: the fastest that keeps the wanted share of neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vim_embed.types.certificate import Certificate

_WITHOUT = ("float32", "float32-ieee")  # what neighbours are compared with


def advice(
    model: str, rates: Mapping[str, float], certificates: Sequence[Certificate], keep: float
) -> str:
    """A line a dtype that matters.

    rates: images/s by dtype. keep: the wanted share of neighbours.
    """
    mine = {one.dtype: one for one in certificates if one.is_for(model)}
    good = {name: rate for name, rate in rates.items() if not _against(name, mine.get(name), keep)}
    lines, top = [], max(good.values(), default=0.0)
    best = next((name for name in good if good[name] == top), None)
    if best is not None and len(rates) > 1:
        vouched = f"; its certificate vouches for {mine[best].least:.4f}" if best in mine else ""
        lines.append(
            f"{model}: {best} is the fastest of these dtypes that keeps {keep:g} of the "
            f"neighbours: {top:,.1f} images/s{vouched}."
        )
    for name in sorted(rates.keys() - good.keys()):
        if rates[name] > top:
            times = f" is {rates[name] / top:.2f} times as fast, but" if top else ":"
            lines.append(f"{model}: {name}{times} {_against(name, mine.get(name), keep)}.")
    return "\n".join(lines)


def _against(dtype: str, certificate: Certificate | None, keep: float) -> str:
    """Why not to take a dtype, or nothing."""
    if dtype in _WITHOUT:
        return ""
    if certificate is None:
        return "no certificate says what it keeps (vim-embed-server certify)"
    if certificate.faults:
        return f"its certificate found: {certificate.faults[0]}"
    if certificate.least < keep:
        return f"its certificate vouches for {certificate.least:.4f} of neighbours"
    return ""
