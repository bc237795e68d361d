"""No wrong row and no late answer, whatever fails; `make chaos` runs it for long and times it."""

from __future__ import annotations

import os

import pytest

from chaos import FAULTS, PROCESS_FAULTS, RECOVERY, run


def test_a_short_chaos() -> None:
    report, codes = run(20)
    assert not report.wrong
    assert not report.late
    assert len(report.faults) >= 4
    assert report.answers["ok"] > 0
    assert report.answers["client ok"] > 0
    assert set(codes) <= {0, 70, -9}, "the server ended otherwise than it was made to"


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_chaos_for_long() -> None:
    report, codes = run(float(os.environ.get("VIM_EMBED_CHAOS_SECONDS", "900")))
    print(report.summary(), dict(codes))
    assert not report.wrong
    assert not report.late
    assert set(report.faults) == {*FAULTS, *PROCESS_FAULTS}
    assert max(max(times) for times in report.recoveries.values()) < RECOVERY
