"""MKNN: how far two embeddings of the same sources agree on which sources are alike.

The mean overlap of cosine k-nearest neighbours, self excluded (Huh et al. 2024, "The Platonic
Representation Hypothesis"), by the operations that `pu.metrics.mknn` of platonic-universe has
scikit-learn do, so that even ties are broken alike: same arrays, same number. (The release
0.1.0 scores arrays in the dtype they have; later versions convert to float64 first, which can
part near-ties otherwise: pass float64 for their number.) Reading files is in score_files.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.markup import escape

from vim_embed_client.cli_common import json_option, print_json, stdout
from vim_embed_client.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from vim_embed_client.score_files import EmbeddingFile

Array = NDArray[Any]
Neighbours = NDArray[np.int32]

# As scikit-learn: a matrix product over other rows may round, and so break ties, differently.
_BLOCK_BYTES = 2**30
_SELECT_ROWS = 1024

_FIGURES = (".png", ".pdf", ".svg")


@dataclass(frozen=True, kw_only=True)
class Score:
    """MKNN of `n` sources at `k`, beside what chance would give.

    low, high: 95 % interval of the mean over sources, each taken as an independent draw.
    chance: k / (n - 1). permuted_mean, permuted_std: MKNN of randomly permuted pairings.
    p_value: share of those, with the true one counted among them, that score at least as high.
    """

    mknn: float
    k: int
    n: int
    low: float
    high: float
    chance: float
    permuted_mean: float
    permuted_std: float
    permutations: int
    p_value: float

    def as_dict(self) -> dict[str, float | int]:
        """The fields under their names, for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """MKNN against k: all arrays (K,); low, high: the central 95 % of permuted pairings."""

    ks: Array
    mknn: Array
    chance: Array
    low: Array
    high: Array


def nearest_neighbours(z: ArrayLike, k: int) -> Neighbours:
    """(n, k) indices of each row's k nearest other rows of z (n, d) by cosine, nearest first.

    float32 is computed in float32 and all else in float64, as scikit-learn does. Takes up to a
    GiB for the distances, whatever n is. Raises ValueError unless 1 <= k < n.
    """
    return _neighbours_for(_checked(z), [k])[0]


def mknn(z1: ArrayLike, z2: ArrayLike, k: int = 10) -> float:
    """Mean overlap of the k nearest neighbours in z1 (n, d1) and z2 (n, d2), from 0 to 1.

    Row i of both is the same source. k >= n counts as n - 1. Raises ValueError for arrays that
    are not 2-D, differ in length, have fewer than two rows or are not finite.
    """
    first, second = _checked_pair(z1, z2)
    k = _checked_k(k, len(first))
    return mean_overlap(nearest_neighbours(first, k), nearest_neighbours(second, k))


def overlaps(first: Neighbours, second: Neighbours) -> NDArray[np.int64]:
    """(n,) how many neighbours each row of two (n, k) neighbour lists shares."""
    both = np.sort(np.concatenate([first, second], axis=1), axis=1)
    shared: NDArray[np.int64] = np.count_nonzero(both[:, 1:] == both[:, :-1], axis=1)
    return shared


def mean_overlap(first: Neighbours, second: Neighbours) -> float:
    """MKNN of two (n, k) neighbour lists."""
    return float(np.mean(overlaps(first, second)) / first.shape[1])


def chance(n: int, k: int) -> float:
    """Expected MKNN of unrelated embeddings: two random k-subsets of n - 1 share k² / (n - 1)."""
    return k / (n - 1)


def permutation_baseline(
    first: Neighbours, second: Neighbours, *, permutations: int = 200, seed: int = 0
) -> NDArray[np.float64]:
    """(permutations,) MKNN after pairing the rows of two neighbour lists at random.

    Permuting the rows of an embedding relabels its neighbour lists, so no distance is computed
    again.
    """
    rng = np.random.default_rng(seed)
    scores = np.empty(permutations)
    for i in range(permutations):
        order = rng.permutation(len(second))
        relabel = np.argsort(order).astype(np.int32)
        scores[i] = mean_overlap(first, relabel[second[order]])
    return scores


def score(
    z1: ArrayLike, z2: ArrayLike, k: int = 10, *, permutations: int = 200, seed: int = 0
) -> Score:
    """MKNN with its interval and its baselines; arguments and errors as `mknn`."""
    first, second = _checked_pair(z1, z2)
    n = len(first)
    k = _checked_k(k, n)
    lists = nearest_neighbours(first, k), nearest_neighbours(second, k)
    shared = overlaps(*lists) / k
    value = mean_overlap(*lists)
    margin = 1.96 * float(shared.std(ddof=1)) / n**0.5
    permuted = permutation_baseline(*lists, permutations=permutations, seed=seed)
    return Score(
        mknn=value,
        k=k,
        n=n,
        low=max(0.0, value - margin),
        high=min(1.0, value + margin),
        chance=chance(n, k),
        permuted_mean=float(permuted.mean()),
        permuted_std=float(permuted.std()),
        permutations=permutations,
        p_value=(1 + int(np.count_nonzero(permuted >= value))) / (1 + permutations),
    )


def mknn_curve(
    z1: ArrayLike,
    z2: ArrayLike,
    ks: Sequence[int] | None = None,
    *,
    permutations: int = 100,
    seed: int = 0,
) -> Curve:
    """MKNN at each k (default: `curve_ks`); the distances are computed once for all of them."""
    first, second = _checked_pair(z1, z2)
    n = len(first)
    ks = curve_ks(n) if ks is None else sorted({_checked_k(k, n) for k in ks})
    lists = list(zip(_neighbours_for(first, ks), _neighbours_for(second, ks), strict=True))
    permuted = [permutation_baseline(*pair, permutations=permutations, seed=seed) for pair in lists]
    low, high = np.percentile(permuted, [2.5, 97.5], axis=1)
    return Curve(
        ks=np.array(ks),
        mknn=np.array([mean_overlap(*pair) for pair in lists]),
        chance=np.array([chance(n, k) for k in ks]),
        low=low,
        high=high,
    )


def curve_ks(n: int) -> list[int]:
    """About a dozen k from 1 to 100, evenly spread on a logarithmic scale, all below n / 2."""
    most = max(1, min(100, n // 2))
    return sorted({round(k) for k in np.geomspace(1, most, 13)})


def _neighbours_for(z: Array, ks: Sequence[int]) -> list[Neighbours]:
    n = len(z)
    found = [np.empty((n, k), np.int32) for k in ks]
    for start, distances in _distance_blocks(z):
        for offset in range(0, len(distances), _SELECT_ROWS):
            part = distances[offset : offset + _SELECT_ROWS]
            rows = np.arange(start + offset, start + offset + len(part))
            for neighbours, k in zip(found, ks, strict=True):
                neighbours[rows] = _select(part, rows, k)
    return found


def _distance_blocks(z: Array) -> Iterator[tuple[int, Array]]:
    """Cosine distances of a block of rows to all rows, with the block's first row."""
    n = len(z)
    norms = np.sqrt(np.einsum("ij,ij->i", z, z))
    norms[norms < 10 * np.finfo(z.dtype).eps] = 1
    unit = z / norms[:, None]
    step = max(1, _BLOCK_BYTES // (8 * n))
    for start in range(0, n, step):
        block = unit if step >= n else unit[start : start + step]
        distances = block @ unit.T
        distances *= -1
        distances += 1
        np.clip(distances, 0.0, 2.0, out=distances)
        if step >= n:
            np.fill_diagonal(distances, 0.0)
        yield start, distances


def _select(distances: Array, rows: NDArray[np.int64], k: int) -> Array:
    """The k nearest columns of each row, less the row itself.

    Where more than k others coincide with a row, it may be missing among its own k + 1 nearest:
    then the first of them is left out in its place.
    """
    nearest = np.argpartition(distances, k, axis=1)[:, : k + 1]
    at = np.arange(len(distances))[:, None]
    nearest = nearest[at, np.argsort(distances[at, nearest])]
    keep = nearest != rows[:, None]
    keep[keep.all(axis=1), 0] = False
    others: Array = nearest[keep].reshape(len(distances), k)
    return others


def _checked(z: ArrayLike) -> Array:
    array = np.asarray(z)
    if array.dtype != np.float32:
        array = array.astype(np.float64)
    if array.ndim != 2:
        raise ValueError(f"embeddings must have the shape (n, d), got {array.shape}")
    if len(array) < 2:
        raise ValueError(f"neighbours need at least two sources, got {len(array)}")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise ValueError(f"{len(bad)} rows are not finite, the first is row {bad[0]}")
    return np.ascontiguousarray(array)


def _checked_pair(z1: ArrayLike, z2: ArrayLike) -> tuple[Array, Array]:
    first, second = _checked(z1), _checked(z2)
    if len(first) != len(second):
        raise ValueError(
            f"the embeddings have {len(first)} and {len(second)} rows: row i of both must be "
            "the same source"
        )
    return first, second


def _checked_k(k: int, n: int) -> int:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return min(k, n - 1)


@click.command()
@click.argument("first")
@click.argument("second")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1), help="Neighbours.")
@click.option("--by-row", is_flag=True, help="Pair rows by position, whatever the ids say.")
@click.option("--seed", default=0, show_default=True, help="Of the permutations.")
@click.option(
    "--figure", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
    help="Also draw MKNN against k: .png, .pdf or .svg.",
)  # fmt: skip
@json_option
def score_command(
    first: str, second: str, k: int, by_row: bool, seed: int, figure: Path | None, as_json: bool
) -> None:
    """Score how far two embeddings of the same sources agree (MKNN).

    FIRST and SECOND are .npy, .npz, .safetensors or .parquet files, as `vim-embed embed` and
    `vim-embed demo` write them; FILE:NAME takes one array, layer or column. Rows are paired by
    their ids where both files have them, else by position.
    """
    from vim_embed_client.score_files import pair, read_embeddings

    if figure is not None and figure.suffix not in _FIGURES:
        raise click.UsageError(f"--figure {figure} does not end in one of {', '.join(_FIGURES)}")
    files = read_embeddings(first), read_embeddings(second)
    arrays = (files[0].embeddings, files[1].embeddings) if by_row else pair(*files)
    try:
        result = score(*arrays, k, seed=seed)
    except ValueError as error:
        raise InputError(str(error)) from None
    if figure is not None:
        _draw(arrays, result, files, figure, seed)
    if as_json:
        about = {"first": first, "second": second, "random_weights": _random(files)}
        print_json(result.as_dict() | about)
    else:
        _report(result, files, asked=k)


def _random(files: tuple[EmbeddingFile, EmbeddingFile]) -> bool:
    return any(file.random_weights for file in files)


def _draw(
    arrays: tuple[Array, Array],
    result: Score,
    files: tuple[EmbeddingFile, EmbeddingFile],
    path: Path,
    seed: int,
) -> None:
    try:
        from vim_embed_client.demo.figure import curve_figure, save
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f'--figure needs {error.name}: pip install "vim-embed[demo]"'
        ) from None
    title = f"{files[0].label} and {files[1].label}"
    if _random(files):
        title = f"RANDOM WEIGHTS, not a scientific result\n{title}"
    curve = mknn_curve(*arrays, [*curve_ks(result.n), result.k], seed=seed)
    save(curve_figure(curve, result, title), path)


def _report(result: Score, files: tuple[EmbeddingFile, EmbeddingFile], *, asked: int) -> None:
    console = stdout()
    for file in files:
        model = f" ({file.model})" if file.model else ""
        rows, dim = file.embeddings.shape
        console.print(f"{escape(file.label)}: {rows:,} × {dim}{escape(model)}")
    if _random(files):
        console.print("[bold red]RANDOM WEIGHTS: not a scientific result.[/]")
    if result.k != asked:
        console.print(f"[yellow]k is {result.k}: there are only {result.n} sources.[/]")
    console.print(
        f"[bold]MKNN {result.mknn:.4f}[/] at k = {result.k} "
        f"(95 % interval over sources {result.low:.4f} to {result.high:.4f})"
    )
    console.print(
        f"Chance {result.chance:.4f}; {result.permutations} permuted pairings "
        f"{result.permuted_mean:.4f} ± {result.permuted_std:.4f}, p = {result.p_value:.3f}"
    )
