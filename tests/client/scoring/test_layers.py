"""MKNN of layers against layers: the matrix, from arrays and from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import safetensors_chunks
from vim_embed_client.scoring.layers import mknn_matrix, score_layers
from vim_embed_client.scoring.mknn import mknn

N = 40


def layers(seed: int, names: str = "abc", n: int = N) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(n, 4 + i)).astype("f4") for i, name in enumerate(names)}


def write(path: Path, found: dict[str, np.ndarray], ids: list[str]) -> str:
    if path.suffix == ".npz":
        np.savez(path, **{"ids": np.array(ids), **found})  # type: ignore[arg-type]
    elif path.suffix == ".safetensors":
        import json

        path.write_bytes(b"".join(safetensors_chunks(found, {"ids": json.dumps(ids)})))
    else:
        pq.write_table(pa.table({**{k: list(v) for k, v in found.items()}, "id": ids}), path)
    return str(path)


def test_each_value_is_the_mknn_of_its_two_layers() -> None:
    first, second = layers(0), layers(1, "xy")
    found = mknn_matrix(first, second, k=5)
    wanted = [[mknn(a, b, 5) for b in second.values()] for a in first.values()]
    np.testing.assert_array_equal(found, wanted)
    assert np.diag(mknn_matrix(first, first, k=5)).tolist() == [1.0] * 3


@pytest.mark.parametrize("first", [".npz", ".safetensors", ".parquet"])
@pytest.mark.parametrize("second", [".npz", ".parquet"])
def test_files_are_paired_by_their_ids(tmp_path: Path, first: str, second: str) -> None:
    one, two = layers(0), layers(1, "xy")
    ids = [f"g{i}" for i in range(N)]
    order = np.random.default_rng(2).permutation(N)
    left = write(tmp_path / f"one{first}", one, ids)
    moved = {name: z[order] for name, z in two.items()}
    right = write(tmp_path / f"two{second}", moved, [ids[i] for i in order])
    scores = score_layers(left, right, k=5)
    assert (scores.first_layers, scores.second_layers) == (tuple("abc"), tuple("xy"))
    assert (scores.n, scores.k, scores.paired) == (N, 5, "by id")
    np.testing.assert_array_equal(scores.values, mknn_matrix(one, two, k=5))


def test_one_layer_of_a_file_is_named_behind_it(tmp_path: Path) -> None:
    one = layers(0)
    path = write(tmp_path / "one.npz", one, [str(i) for i in range(N)])
    scores = score_layers(f"{path}:b", path, k=3)
    assert (scores.first_layers, scores.values.shape) == (("b",), (1, 3))
    assert scores.values[0, 1] == 1


def test_a_row_without_direction_in_any_layer_is_refused_or_dropped(tmp_path: Path) -> None:
    one, two = layers(0), layers(1)
    one["b"][3], two["c"][7] = 0, np.nan
    ids = [f"g{i}" for i in range(N)]
    paths = [write(tmp_path / f"{i}.npz", z, ids) for i, z in enumerate((one, two))]
    with pytest.raises(InputError, match=r"0\.npz:b: 1 of 40 rows .* g3 \(zero\)"):
        score_layers(*paths, k=5)
    scores = score_layers(*paths, k=5, drop_invalid=True)
    kept = np.delete(np.arange(N), [3, 7])
    wanted = mknn_matrix(
        {k: z[kept] for k, z in one.items()}, {k: z[kept] for k, z in two.items()}, 5
    )
    np.testing.assert_array_equal(scores.values, wanted)
    assert scores.n == N - 2


def test_what_cannot_be_compared_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "one.npz", layers(0), [str(i) for i in range(N)])
    short = write(tmp_path / "short.npz", layers(0, n=5), [str(i) for i in range(5)])
    with pytest.raises(InputError, match="k = 10 needs more than 10 sources, and there are 5"):
        score_layers(short, short)
    with pytest.raises(InputError, match="name different sources"):
        score_layers(path, short)
    (tmp_path / "empty.npz").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        score_layers(path, str(tmp_path / "empty.npz"))
    np.savez(tmp_path / "none.npz", ids=np.array(["a"]))
    with pytest.raises(ConfigurationError, match="has no embeddings"):
        score_layers(path, str(tmp_path / "none.npz"))
