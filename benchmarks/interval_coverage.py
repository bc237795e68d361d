"""How often intervals of MKNN cover the score that new sources are expected to have.

Simulated surveys: noisy views of the same Gaussian or clumped sources. Prints, for each setting,
the scatter of MKNN over surveys, the mean error that the jackknife and the scatter of the sources
(as if these were independent) give, and how often their intervals cover the mean over surveys.
About a minute: python benchmarks/interval_coverage.py [SURVEYS]

--precision: the intervals of certificates of precision instead (service extra): an embedding beside
the same with little noise, so that nearly all neighbours are kept.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.scoring.mknn import jackknife_error, overlaps
from vim_embed_client.scoring.neighbours import nearest_neighbours

# Sources, dimensions, noise, k.
SETTINGS = (
    (200, 8, 0.3, 10),
    (200, 8, 1.0, 10),
    (500, 32, 0.5, 10),
    (500, 8, 0.3, 1),
    (500, 8, 0.3, 50),
    (300, 4, 0.1, 10),
    (200, 16, 5.0, 10),
)
CLUMPS = 8
# Images, dimensions, noise: of the size that rounding makes.
ROUNDING = (
    (100, 64, 1e-4),
    (100, 64, 1e-3),
    (200, 64, 3e-3),
    (500, 192, 1e-3),
    (500, 192, 5e-3),
    (200, 64, 3e-2),
)


def views(
    rng: np.random.Generator, n: int, d: int, noise: float, centres: NDArray[Any]
) -> NDArray[Any]:
    """(2, n, d) two noisy views of sources around the centres."""
    truth = centres[rng.integers(0, len(centres), n)] + rng.normal(size=(n, d))
    return truth + noise * rng.normal(size=(2, n, d))


def measure(z: NDArray[Any], k: int) -> tuple[float, float, float]:
    """MKNN, its jackknife error, and the error of independent sources."""
    (one, more_one), (two, more_two) = (
        (nearest_neighbours(view, k), nearest_neighbours(view, k + 1)) for view in z
    )
    shares = overlaps(one, two) / k
    error = jackknife_error(one, two, more_one, more_two)
    return float(shares.mean()), error, float(shares.std(ddof=1) / len(shares) ** 0.5)


def precision(surveys: int) -> None:
    """Prints how often a certificate's interval, and the jackknife's alone, cover the truth."""
    from vim_embed.certify.neighbours import interval

    print("images of      n   d  noise     kept  jackknife covers  certificate covers")
    for kind in ("gauss", "clumps"):
        for n, d, noise in ROUNDING:
            rng = np.random.default_rng([n, d, int(noise * 1e6)])
            centres = 2 * rng.normal(size=(CLUMPS, d)) if kind == "clumps" else np.zeros((1, d))
            found = []
            for _ in range(surveys):
                truth = centres[rng.integers(0, len(centres), n)] + rng.normal(size=(n, d))
                rounded = truth + noise * rng.normal(size=(n, d))
                kept, error, _ = measure(np.stack([truth, rounded]), 10)
                found.append((kept, error, *interval(kept, error, n, 10)))
            kept, error, low, high = np.array(found).T
            truth = kept.mean()
            plain = np.mean(abs(kept - truth) <= 1.96 * error)
            certified = np.mean((low <= truth) & (truth <= high))
            print(
                f"{kind:9} {n:5} {d:4} {noise:6g} {truth:9.5f}  {plain:16.3f}  {certified:18.3f}",
                flush=True,
            )


def main() -> None:
    arguments = [one for one in sys.argv[1:] if one != "--precision"]
    surveys = int(arguments[0]) if arguments else 150
    if "--precision" in sys.argv:
        precision(surveys)
        return
    print("sources of    n   d  noise   k   MKNN  scatter  jackknife  covers  independent  covers")
    for kind in ("gauss", "clumps"):
        for n, d, noise, k in SETTINGS:
            rng = np.random.default_rng([n, d, k])
            clumps = 2 * rng.normal(size=(CLUMPS, d)) if kind == "clumps" else np.zeros((1, d))
            found = [measure(views(rng, n, d, noise, clumps), k) for _ in range(surveys)]
            values, *errors = np.array(found).T
            cells = [
                f"{e.mean():9.4f} {np.mean(abs(values - values.mean()) < 1.96 * e):7.3f}"
                for e in errors
            ]
            print(
                f"{kind:9} {n:5} {d:3} {noise:6} {k:3} {values.mean():6.3f} {values.std():8.4f} "
                f"{cells[0]}    {cells[1]}",
                flush=True,
            )


if __name__ == "__main__":
    main()
