"""`vim-embed join`: two surveys in one table, which the real host compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from vim_embed_client.bulk.outputs import Contents, write_output
from vim_embed_client.bulk.row_shape import NamedShape
from vim_embed_client.cli.main import run
from vim_embed_client.results import Provenance
from vim_embed_client.scoring.mknn import mknn

from .host_runs import Host, finish

N = 60
LAYERS = ("patch_embed", "layers.0", "last_hidden_state")


def write(path: Path, seed: int, *, mode: str = "", order: Any = None) -> dict[str, Any]:
    """A file as `embed` writes it, with layers where there is a mode."""
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal((N, 6)).astype("f4") for name in LAYERS}
    arrays = arrays if mode else {"embedding": arrays["last_hidden_state"]}
    order = np.arange(N) if order is None else order
    ids = [f"{path.parent}/g{row}" for row in order]
    halves = [slice(0, N // 2), slice(N // 2, N)]
    contents = Contents(
        rows=N,
        shape=tuple(NamedShape(name, (6,)) for name in arrays),
        dtype=np.dtype("f4"),
        provenance=Provenance(model="vim-tiny"),
        blocks=lambda: (
            (ids[half], {name: z[order][half] for name, z in arrays.items()}) for half in halves
        ),
        mode=mode,
    )
    write_output(path, contents)
    return arrays


@pytest.mark.parametrize("moved", [False, True])
def test_layers_of_two_surveys(tmp_path: Path, monkeypatch: Any, capsys: Any, moved: bool) -> None:
    monkeypatch.setattr("vim_embed_client.scoring.survey_tables._GROUP_ROWS", 7)
    order = np.random.default_rng(9).permutation(N) if moved else None
    one = write(tmp_path / "a.parquet", 0, mode="hsc")
    two = write(tmp_path / "b.parquet", 1, mode="jwst", order=order)
    out = tmp_path / "o.parquet"
    files = [f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet"]
    assert run(["join", *files, "-o", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["paired"], len(told["columns"])) == (N, "by id", 6)
    table = pq.read_table(out)
    assert table.column_names == [
        *(f"{n}_hsc" for n in LAYERS),
        *(f"{n}_jwst" for n in LAYERS),
        "id",
    ]
    for mode, arrays in (("hsc", one), ("jwst", two)):
        for name, z in arrays.items():
            np.testing.assert_array_equal(np.array(table[f"{name}_{mode}"].to_pylist(), "f4"), z)


def test_the_real_host_compares_them(host: Host, tmp_path: Path) -> None:
    """The release takes the model's name from the first column, and wants two surveys."""
    wanted, tables = [], []
    for layers in (True, False):
        one = write(tmp_path / "a.parquet", 0, mode="hsc" if layers else "")
        two = write(tmp_path / "b.parquet", 1, mode="jwst" if layers else "")
        tables.append(str(tmp_path / f"layers-{layers}.parquet"))
        names = [] if layers else ["--modes", "hsc,jwst"]
        args = ["join", f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet", "-o", tables[-1]]
        assert run([*args, *names]) == 0
        name = "patch_embed" if layers else "embedding"
        wanted.append((one[name], two[name]))
    assert pq.read_schema(tables[1]).names == ["vim_tiny_hsc", "vim_tiny_jwst", "id"]
    code = (
        "import json; from pu.metrics import run_mknn_comparison as compare\n"
        f"for table in {tables}:\n"
        "    found = compare(table)\n"
        "    rows = [list(map(list, z.astype(float))) for z in found['embeddings'].values()]\n"
        "    print(json.dumps([found['mknn_score'], rows]))"
    )
    output = finish(host.start_python(tmp_path, code))
    for line, pair in zip(output.splitlines()[-2:], wanted, strict=True):
        score, embeddings = json.loads(line)
        for read, z in zip(embeddings, pair, strict=True):
            np.testing.assert_array_equal(np.array(read, "f4"), z)
        assert score == pytest.approx(mknn(*pair, 10), abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "options", "reason"),
    [
        ("hsc", "hsc", [], "need names that differ"),
        ("", "", [], "need names that differ"),
        ("hsc", "", [], "only one of"),
        ("hsc", "jwst", ["--modes", "a_b,c"], "two words without _"),
    ],
)
def test_what_is_no_pair_of_surveys(
    tmp_path: Path, capsys: Any, first: str, second: str, options: list[str], reason: str
) -> None:
    write(tmp_path / "a.parquet", 0, mode=first)
    write(tmp_path / "b.parquet", 1, mode=second)
    out = tmp_path / "o.parquet"
    args = ["join", f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet", "-o", str(out)]
    assert run([*args, *options]) in (1, 2)
    assert reason in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
