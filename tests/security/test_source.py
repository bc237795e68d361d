"""What the code itself must not do: unpickle, evaluate, or run a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("service/vim_embed", "client/vim_embed_client", "docker")
    for path in (ROOT / folder).rglob("*.py")
)
_UNPICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
_READS = {"load", "loads", "Unpickler", "open", "_load"}
_WITH = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def problems(tree: ast.AST) -> Iterator[str]:
    """What is wrong in a module, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in _UNPICKLERS:
            names = {alias.name for alias in node.names} & _READS
            if names:
                yield f"{node.lineno}: from {node.module} import {names}"
        if not isinstance(node, ast.Call):
            continue
        name = _name(node.func)
        module, _, function = name.rpartition(".")
        given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        if module in _UNPICKLERS and function in _READS:
            yield f"{node.lineno}: {name} unpickles"
        if name.replace("numpy.", "np.") in _WITH:
            option, value = _WITH[name.replace("numpy.", "np.")]
            if given.get(option) is not value:
                yield f"{node.lineno}: {name} without {option}={value}"
        if name.endswith(("read_array", "yaml.load", ".read_pickle")):
            yield f"{node.lineno}: {name}"
        if name in ("eval", "exec", "os.system", "os.popen") or given.get("shell"):
            yield f"{node.lineno}: {name} runs text"
        if given.get("trust_remote_code"):
            yield f"{node.lineno}: {name} runs a repository's code"
        if function == "from_pretrained" and given.get("weights_only") is not True:
            yield f"{node.lineno}: {name} without weights_only=True"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    assert list(problems(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(x)",
        "from pickle import Unpickler",
        "import torch\ntorch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "numpy.lib.format.read_array(file)",
        "AutoModel.from_pretrained(x, weights_only=True, trust_remote_code=True)",
        "AutoModel.from_pretrained(x)",
        "subprocess.run(x, shell=True)",
        "eval(x)",
    ],
)
def test_the_check_finds_it(source: str) -> None:
    assert list(problems(ast.parse(source)))
