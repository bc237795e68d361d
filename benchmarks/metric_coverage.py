"""How often intervals of every metric cover the truth, and whether p is uniform without a relation.

    python benchmarks/metric_coverage.py                      # all metrics, all surveys
    python benchmarks/metric_coverage.py --surveys 400 --only gauss,few --metrics cka,svcca
    python benchmarks/metric_coverage.py --nulls              # p of unrelated embeddings
    python benchmarks/metric_coverage.py --differences        # of `vim-embed compare`

Simulated surveys: two noisy views of the same sources, of which a new set is drawn for each survey.
The truth is the mean over surveys: what a score of so many sources is expected to be. Prints, for
each metric and kind of survey, the mean value, the scatter over surveys, the mean standard error,
and the share of 95 % intervals that cover.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.scoring.catalogue_property import PropertyStatistic
from vim_embed_client.scoring.comparison import compare
from vim_embed_client.scoring.metrics import (
    METRICS,
    MetricScore,
    Statistic,
    score_statistics,
    statistics,
)
from vim_embed_client.scoring.neighbour_lists import Lists

Array = NDArray[Any]
K = 10
PROPERTIES = ("property: number", "property: class")
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Survey:
    """How sources and the two views of them are drawn.

    n: sources. d: dimensions of the truth; widths: of the two views, which mix it. noise: of each
    view, in units of the truth's scatter. truth: draws (n, d).
    """

    n: int
    d: int
    noise: float
    truth: Callable[[np.random.Generator, int, int], Array]
    widths: tuple[int, int] = (12, 10)
    copies: int = 0

    def draw(self, rng: np.random.Generator, mixing: Sequence[Array]) -> tuple[Array, Array]:
        z = self.truth(rng, self.n, self.d)
        x, y = (z @ mix + self.noise * rng.normal(size=(self.n, mix.shape[1])) for mix in mixing)
        if self.copies:
            x[-self.copies :], y[-self.copies :] = x[: self.copies], y[: self.copies]
        return x, y

    def mixing(self) -> list[Array]:
        """The same for all surveys: the two models."""
        rng = np.random.default_rng(self.d)
        return [rng.normal(size=(self.d, width)) / self.d**0.5 for width in self.widths]


def gauss(rng: np.random.Generator, n: int, d: int) -> Array:
    return rng.normal(size=(n, d))


def clumps(rng: np.random.Generator, n: int, d: int) -> Array:
    centres = 2 * np.random.default_rng(8).normal(size=(8, d))
    drawn: Array = centres[rng.integers(0, 8, n)] + rng.normal(size=(n, d))
    return drawn


def heavy(rng: np.random.Generator, n: int, d: int) -> Array:
    """A few sources are much brighter than the others."""
    drawn: Array = rng.normal(size=(n, d)) / np.sqrt(rng.chisquare(3, size=(n, 1)) / 3)
    return drawn


SURVEYS: dict[str, Survey] = {
    "gauss": Survey(n=200, d=8, noise=0.4, truth=gauss),
    "clumps": Survey(n=200, d=8, noise=0.4, truth=clumps),
    "heavy": Survey(n=200, d=8, noise=0.4, truth=heavy),
    "alike": Survey(n=200, d=8, noise=0.03, truth=gauss),
    "unrelated": Survey(n=200, d=8, noise=30.0, truth=gauss),
    "few": Survey(n=30, d=4, noise=0.4, truth=gauss, widths=(6, 5)),
    "very few": Survey(n=12, d=2, noise=0.4, truth=gauss, widths=(3, 3)),
    "wide": Survey(n=100, d=40, noise=0.4, truth=gauss, widths=(160, 120)),
    "copies": Survey(n=200, d=8, noise=0.4, truth=gauss, copies=20),
    "many": Survey(n=1000, d=8, noise=0.4, truth=clumps),
}


def every_statistic(
    x: Array, y: Array, metrics: Sequence[str], values: Array
) -> dict[str, Statistic]:
    """The metrics, and the agreement of the first embedding's neighbours in a property."""
    k = min(K, len(x) // 4)
    found = statistics(x, y, [name for name in metrics if name in METRICS], k=k)
    asked = {"property: number": values, "property: class": np.where(values > 0, "late", "early")}
    for name, column in asked.items():
        if name in metrics:
            found[name] = PropertyStatistic(Lists.of(x, k), column)
    return found


def scores(
    survey: Survey, metrics: Sequence[str], surveys: int, permutations: int, *, related: bool = True
) -> dict[str, list[MetricScore]]:
    """By metric: a score for each survey, where it has an interval."""
    rng, mixing = np.random.default_rng(survey.n + survey.d), survey.mixing()
    found: dict[str, list[MetricScore]] = {name: [] for name in metrics}
    for draw in range(surveys):
        x, y = survey.draw(rng, mixing)
        values = x[:, 0] + rng.normal(size=len(x))
        if not related:
            order = rng.permutation(len(x))
            y, values = survey.draw(rng, mixing)[1], values[order]
        each = every_statistic(x, y, metrics, values)
        for score in score_statistics(each, len(x), permutations=permutations, seed=draw):
            if score.has_interval:  # not where a class has so few sources that one draw has none
                found[score.metric].append(score)
    return found


def coverage(found: Sequence[MetricScore]) -> tuple[float, float, float, float]:
    """Mean value, scatter over surveys, mean standard error, share of intervals that cover."""
    values = np.array([each.value for each in found])
    truth = values.mean()
    covers = [each.low <= truth <= each.high for each in found]
    errors = np.array([each.std_error for each in found])
    return float(truth), float(values.std()), float(errors.mean()), float(np.mean(covers))


def print_coverage(names: Sequence[str], metrics: Sequence[str], surveys: int) -> None:
    print(f"{surveys} surveys; a coverage is known to {2 * math.sqrt(0.05 * 0.95 / surveys):.3f}")
    print(f"{'survey':10} {'metric':18} {'value':>8} {'scatter':>8} {'error':>8} covers")
    for name in names:
        for metric, found in scores(SURVEYS[name], metrics, surveys, 1).items():
            if not found:
                print(f"{name:10} {metric:18} has no interval of {SURVEYS[name].n} sources")
                continue
            value, scatter, error, covers = coverage(found)
            print(
                f"{name:10} {metric:18} {value:8.4f} {scatter:8.4f} {error:8.4f} {covers:.3f}",
                flush=True,
            )


def print_nulls(names: Sequence[str], metrics: Sequence[str], surveys: int) -> None:
    """p ≤ 0.05 in how many surveys, mean p, and the largest distance to a uniform distribution."""
    permutations = 39
    limit = 1.63 / math.sqrt(surveys)
    print(f"{surveys} surveys, {permutations} random pairings; distances exceed {limit:.3f} in 1 %")
    print(f"{'survey':10} {'metric':18} p<=0.05 p<=0.5  mean distance")
    for name in names:
        found = scores(SURVEYS[name], metrics, surveys, permutations, related=False)
        for metric, each in found.items():
            p = np.array([score.p_value for score in each])
            steps = np.arange(1, permutations + 2) / (permutations + 1)
            apart = max(abs(float(np.mean(p <= step)) - step) for step in steps)
            print(
                f"{name:10} {metric:18} {np.mean(p <= 0.05):7.3f} {np.mean(p <= 0.5):6.3f} "
                f"{p.mean():5.3f} {apart:.3f}",
                flush=True,
            )


def print_differences(names: Sequence[str], metrics: Sequence[str], surveys: int) -> None:
    """Two models of equal quality: how often the paired interval covers 0, and p ≤ 0.05."""
    print(f"{surveys} surveys")
    print(f"{'survey':10} {'metric':18} {'scatter':>8} {'error':>8} covers p<=0.05")
    for name in names:
        survey = SURVEYS[name]
        rng, mixing = np.random.default_rng(survey.n), survey.mixing()
        drawn = []
        for _ in range(surveys):
            z = survey.truth(rng, survey.n, survey.d)
            views = [
                [z @ m + survey.noise * rng.normal(size=(survey.n, m.shape[1])) for m in mixing]
                for _ in range(2)
            ]
            drawn.append([(f"m{place}", x, y) for place, (x, y) in enumerate(views)])
        for metric in metrics:
            if metric not in METRICS:
                continue
            found = [compare(pair, metric, k=min(K, survey.n // 4))[1] for pair in drawn]
            gaps = np.array([each.difference for each in found])
            covers = np.mean([each.low <= 0 <= each.high for each in found])
            errors = np.mean([(each.high - each.low) / 2 for each in found])
            p = np.mean([each.p_value <= 0.05 for each in found])
            figures = f"{gaps.std():8.4f} {errors / 2.093:8.4f} {covers:.3f} {p:.3f}"
            print(f"{name:10} {metric:18} {figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--surveys", type=int, default=200)
    parser.add_argument("--only", default=",".join(SURVEYS))
    parser.add_argument("--metrics", default=",".join((*METRICS, *PROPERTIES)))
    parser.add_argument("--nulls", action="store_true")
    parser.add_argument("--differences", action="store_true")
    given = parser.parse_args()
    work = print_coverage
    if given.nulls:
        work = print_nulls
    if given.differences:
        work = print_differences
    work(given.only.split(","), given.metrics.split(","), given.surveys)


if __name__ == "__main__":
    main()
