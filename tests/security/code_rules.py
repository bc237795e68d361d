"""What no line of the service or the client may do, found in its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator

# Reading these runs what they hold.
_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
_PICKLE_MAY = {"UnpicklingError"}  # the error of torch's own, restricted reader
_BUILTINS = {"eval", "exec", "compile", "__import__"}
_NEVER = {
    "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load",
    "tempfile.mktemp", "pandas.read_pickle", "pd.read_pickle", "torch.jit.load",
}  # fmt: skip
_NEEDED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "np.save": ("allow_pickle", False),
    "np.lib.format.read_array": ("allow_pickle", False),
    "npy_format.read_array": ("allow_pickle", False),
}
_FORBIDDEN = {
    "shell": True, "allow_pickle": True, "weights_only": False, "trust_remote_code": True,
    "verify": False,
}  # fmt: skip


def violations(source: str) -> list[str]:
    """`line: what` of everything that is not allowed in a file's source."""
    tree = ast.parse(source)
    return [f"{line}: {what}" for node in ast.walk(tree) for line, what in _judge(node)]


def _judge(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.partition(".")[0] in _MODULES - {"pickle"}:
                yield node.lineno, f"import {alias.name}"
            if alias.name == "pickle" and alias.asname:
                yield node.lineno, "pickle under another name"
    elif isinstance(node, ast.ImportFrom):
        if (node.module or "").partition(".")[0] in _MODULES:
            yield node.lineno, f"from {node.module}"
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            if whole in _NEVER or whole in _NEEDED:
                yield node.lineno, f"{whole} under its bare name"
    elif isinstance(node, ast.Attribute):
        if _name(node.value) == "pickle" and node.attr not in _PICKLE_MAY:
            yield node.lineno, f"pickle.{node.attr}"
    elif isinstance(node, ast.Call):
        yield from _judge_call(node)


def _judge_call(call: ast.Call) -> Iterator[tuple[int, str]]:
    name = _name(call.func)
    if name in _BUILTINS or name in _NEVER:
        yield call.lineno, f"{name}()"
    given = {word.arg: word.value for word in call.keywords}
    if name in _NEEDED:
        argument, value = _NEEDED[name]
        if not _is(given.get(argument), value):
            yield call.lineno, f"{name}() without {argument}={value}"
    if name.endswith(".from_pretrained") and not _is(given.get("weights_only"), True):
        yield call.lineno, f"{name}() without weights_only=True"
    for argument, bad in _FORBIDDEN.items():
        if _is(given.get(argument), bad):
            yield call.lineno, f"{name}({argument}={bad})"


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _name(node: ast.expr) -> str:
    """`np.lib.format.load` of the expression that says so, else an empty text."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _name(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""
