"""No wrong row and no late answer, whatever fails; `make chaos` runs it for long and times it."""

from __future__ import annotations

import os

import pytest
from chaos import EXPECTED_CODES, FAULTS, PROCESS_FAULTS, RECOVERY, RESTART, Report, run


def test_a_short_chaos() -> None:
    """Outcomes alone: how late an answer is, on a machine that does other work, says nothing."""
    report, keeper = run(1, least_faults=3)
    assert not report.wrong
    assert len(report.faults) >= 3
    assert report.answers["ok"] > 0
    assert report.answers["client ok"] > 0
    assert set(keeper.codes) <= EXPECTED_CODES, keeper.last_words


def test_a_new_process_may_take_longer_than_one_that_stays() -> None:
    report = Report(recoveries={"kill": [1.0, RESTART - 0.1], "hang": [RECOVERY - 0.1]})
    assert report.slow() == []
    report.recoveries |= {"exit": [RESTART + 0.1], "stop": [0.1, RECOVERY + 0.1]}
    assert report.slow() == ["exit", "stop"]


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_chaos_for_long() -> None:
    report, keeper = run(float(os.environ.get("VIM_EMBED_CHAOS_SECONDS", "900")))
    print(report.summary(), dict(keeper.codes))
    assert set(keeper.codes) <= EXPECTED_CODES, keeper.last_words
    assert not report.wrong
    assert not report.late
    assert set(report.faults) == {*FAULTS, *PROCESS_FAULTS}
    assert not report.slow()
