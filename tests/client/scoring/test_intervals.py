"""Intervals of metrics: what they cover, reach and leave open."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vim_embed_client.scoring.catalogue_property import PropertyStatistic
from vim_embed_client.scoring.intervals import half_width, standard_error
from vim_embed_client.scoring.metrics import (
    METRICS,
    MetricScore,
    Statistic,
    jackknives,
    measure,
    score_statistics,
    statistic,
    statistics,
)
from vim_embed_client.scoring.moments import Order
from vim_embed_client.scoring.neighbour_lists import Lists
from vim_embed_client.scoring.rare_events import most_events

from .related import related

Array = NDArray[Any]
PROPERTY = "a property"


@pytest.fixture(scope="module")
def surveys() -> dict[str, list[MetricScore]]:
    """By metric: its scores of simulated surveys of the same two telescopes."""
    rng = np.random.default_rng(5)
    mixing = rng.normal(size=(4, 6))
    found: dict[str, list[MetricScore]] = {name: [] for name in (*METRICS, PROPERTY)}
    for _ in range(40):
        z = rng.normal(size=(80, 4))
        noisy = z @ mixing + rng.normal(size=(80, 6))
        each = statistics(z, noisy, METRICS, k=5)
        each[PROPERTY] = PropertyStatistic(Lists.of(z, 5), z[:, 0] + rng.normal(size=80))
        for one in score_statistics(each, 80, permutations=1):
            found[one.metric].append(one)
    return found


@pytest.mark.parametrize("name", [*METRICS, PROPERTY])
def test_intervals_cover_the_expected_value(
    surveys: dict[str, list[MetricScore]], name: str
) -> None:
    draws = surveys[name]
    expected = np.mean([draw.value for draw in draws])
    covered = np.mean([draw.low <= expected <= draw.high for draw in draws])
    assert covered >= 0.85  # 0.95 less three times the deviation of 40 draws


class Mean(Statistic):
    def __init__(self, values: Array) -> None:
        self._values = values

    def paired(self, order: Order) -> float:
        return float(self._values.mean())

    def without(self, left_out: NDArray[np.bool_]) -> float:
        return float(self._values[~left_out].mean())


def test_the_group_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(8).normal(size=4000)
    jackknife = jackknives({"mean": Mean(values)}, 4000)["mean"]
    error = standard_error(jackknife.values)
    assert error == pytest.approx(values.std() / 4000**0.5, rel=0.4)


def test_the_interval_of_a_correlation_is_one_of_its_inverse_hyperbolic_tangent() -> None:
    x, y = related(11, 30)
    (found,) = measure(x, y, ["cka"], permutations=1)
    jackknife = jackknives({"cka": statistic(x, y, "cka")}, 30)["cka"]
    width = half_width(np.arctanh(jackknife.values))
    assert math.atanh(found.low) == pytest.approx(math.atanh(found.value) - width)
    assert math.atanh(found.high) == pytest.approx(math.atanh(found.value) + width)


def test_a_share_of_all_sources_leaves_rare_losses_open() -> None:
    """A jackknife of forty that all have it sees no scatter; up to 3.7 more may lack it."""
    x, _ = related(12, 40)
    (found,) = measure(x, 2 * x, ["cycle-knn"], k=20, permutations=1)
    assert (found.value, found.std_error, found.high) == (1.0, 0.0, 1.0)
    assert found.low == pytest.approx(1 - 3.69 / 40, abs=1e-3)


@pytest.mark.parametrize(
    ("seen", "bound"), [(0, 3.689), (1, 5.572), (2, 7.225), (5, 11.668), (10, 18.390), (50, 65.92)]
)
def test_most_events_is_the_quantile_of_chi_squared(seen: int, bound: float) -> None:
    """Half that of 2 (seen + 1) degrees of freedom at 97.5 %, as tables have it."""
    assert most_events(seen) == pytest.approx(bound, rel=0.01)


def test_linear_r2_of_few_sources_has_no_interval() -> None:
    few, more = (measure(*related(13, n), ["linear-r2"], permutations=1)[0] for n in (19, 20))
    assert np.isfinite(few.value)
    assert not few.has_interval
    assert more.has_interval


@pytest.mark.parametrize("metric", ["svcca", "pwcca"])
def test_intervals_reach_the_values_with_other_numbers_of_components(metric: str) -> None:
    """Where the 99 % lie between two numbers of components, both their values are within."""
    rng = np.random.default_rng(5)
    scales = np.array([10.0, 5, 2, 0.87, 0.8])  # three hold 98.9 %, four 99.5 %
    z1 = rng.normal(size=(300, 5)) * scales
    z2 = z1[:, ::-1] + rng.normal(size=z1.shape) * scales[::-1] * [3, 3, 0.1, 0.1, 0.1]
    (found,) = measure(z1, z2, [metric], permutations=5)
    ends = sorted(by_hand(metric, z1, z2, (kept, 5)) for kept in (3, 4))
    assert found.value == pytest.approx(by_hand(metric, z1, z2, None))
    assert ends[1] - ends[0] > 3 * found.std_error, "the value jumps"
    assert found.low < ends[0] + 1e-9
    assert found.high > ends[1] - 1e-9 or found.high == 1


@pytest.mark.parametrize("metric", ["svcca", "pwcca"])
def test_a_statistic_keeps_nothing_of_what_was_left_out_before(metric: str) -> None:
    x, y = related(14, 60)
    fresh = jackknives({metric: statistic(x, y, metric)}, 60)[metric]
    used = statistic(x, y, metric)
    used.without(np.arange(60) < 40)
    jackknives({metric: used}, 60, seed=1)
    again = jackknives({metric: used}, 60)[metric]
    np.testing.assert_array_equal(again.values, fresh.values)
    assert again.alternatives == fresh.alternatives
    assert len(fresh.alternatives) == 4


def by_hand(metric: str, x: Array, y: Array, kept: tuple[int, int] | None) -> float:
    """SVCCA and PWCCA of the leading components, by QR as their authors have it."""
    x, y = x - x.mean(0), y - y.mean(0)
    bases = []
    for place, z in enumerate((x, y)):
        u, s, _ = np.linalg.svd(z, full_matrices=False)
        count = int((np.cumsum(s**2) / (s**2).sum() < 0.99).sum()) + 1
        bases.append(u[:, : count if kept is None else kept[place]])
    left, correlations, _ = np.linalg.svd(bases[0].T @ bases[1], full_matrices=False)
    correlations = correlations.clip(0, 1)
    if metric == "svcca":
        return float(correlations.mean())
    weights = np.abs((bases[0] @ left).T @ x).sum(axis=1)
    return float((correlations * weights).sum() / weights.sum())
