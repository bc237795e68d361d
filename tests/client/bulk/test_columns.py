"""Columns beside the embeddings: in every output, each value beside its own row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from vim_embed_client.bulk.checkpoint import Checkpoint
from vim_embed_client.bulk.outputs import Contents, write_output
from vim_embed_client.bulk.pipeline import Cursor, RowResult
from vim_embed_client.bulk.reasons import LeftOut
from vim_embed_client.bulk.row_columns import check_names
from vim_embed_client.bulk.row_shape import Origin, vector
from vim_embed_client.bulk.run import finished
from vim_embed_client.bulk.sources.reader import Skipped
from vim_embed_client.errors import ConfigurationError
from vim_embed_client.formats import parse_safetensors
from vim_embed_client.results import Provenance

# Columns of two parts: what differs between them becomes one kind.
_PARTS: list[tuple[int, dict[str, list[Any]]]] = [
    (2, {"z": [0.5, None], "n": [1, 2], "class": ["Sb", "E"], "odd": [1, "b"]}),
    (1, {"z": [1], "class": [None], "good": [True]}),
]
_WANTED = {
    "z": [0.5, None, 1.0],
    "n": [1, 2, None],
    "class": ["Sb", "E", None],
    "odd": ["1", "b", None],
    "good": [None, None, True],
}


def _columns(path: Path) -> dict[str, list[Any]]:
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
        return {name: table[name].to_pylist() for name in table.column_names[2:]}
    if path.suffix == ".npy":
        return dict(json.loads(Path(f"{path}.json").read_text())["columns"])
    if path.suffix == ".npz":
        return dict(json.loads(str(np.load(path)["metadata"]))["columns"])
    return dict(json.loads(parse_safetensors(path.read_bytes())[1]["columns"]))


@pytest.mark.parametrize("ending", [".npy", ".npz", ".parquet", ".safetensors"])
def test_columns_become_one_kind_each(tmp_path: Path, ending: str) -> None:
    ones = np.ones((3, 3), "f4")
    blocks = [(["a", "b"], {"embedding": ones[:2]}), (["c"], {"embedding": ones[2:]})]
    contents = Contents(
        rows=3,
        shape=vector(3),
        dtype=np.dtype("f4"),
        provenance=Provenance(model="m"),
        blocks=lambda: iter(blocks),
        columns=lambda: iter(_PARTS),
    )
    write_output(tmp_path / f"o{ending}", contents)
    assert _columns(tmp_path / f"o{ending}") == _WANTED


def test_a_checkpoint_keeps_them_beside_their_rows(tmp_path: Path) -> None:
    output = tmp_path / "o.parquet"

    def results() -> Iterator[RowResult]:
        for row in range(7):
            numbers: Any = np.full(2, row, np.float32)
            columns = {"z": row / 10} if row % 3 else {}
            found = Skipped(id=str(row), reason="no") if row == 4 else numbers
            yield RowResult(Cursor(0, row + 1, "d"), str(row), found, 1, "", columns)

    for first in (True, False):
        checkpoint = Checkpoint(output, {}, part_rows=2)
        checkpoint.check(Origin(Provenance(model="m"), vector(2)))
        for one in list(results())[: 4 if first else None]:
            if one.cursor.row > checkpoint.cursor.row:
                checkpoint.add(one)
        checkpoint.commit()
        if first:
            checkpoint.close()
    finished(output, checkpoint, LeftOut(), 0, options={})
    checkpoint.close(remove=True)
    table = pyarrow.parquet.read_table(output).to_pylist()
    assert [(one["id"], one["embedding"][0], one["z"]) for one in table] == [
        (str(row), row, row / 10 if row % 3 else None) for row in range(7) if row != 4
    ]


def test_the_columns_of_the_output_itself_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="a column 'id' of its own"):
        check_names(["ra", "id"])
