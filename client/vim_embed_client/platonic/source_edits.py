"""Edits of the host's source: model tables learn our aliases, the registry our adapters.

Places are found in the syntax tree; what is inserted are whole lines, so that taking them out
gives back the file byte for byte. Knows text only: no files here.
"""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator

from vim_embed_client.platonic.aliases import ALIASES, SIZES

_PACKAGE = "vim_embed_client.platonic"
_KNOWN_ALIAS = "vit"  # every table of the host has it
_REGISTRATION = f"""\
try:  # optional: pip install vim-embed
    from {_PACKAGE} import register_aliases
except ModuleNotFoundError:
    pass
else:
    register_aliases(register_adapter)
"""


class UnknownLayoutError(ValueError):
    """Source that is not what this edit was made for; the message says what is missing."""


def with_tables(source: str) -> str:
    """`source` with our aliases in each of its model tables. Raises UnknownLayoutError."""
    source = without_tables(source)
    found = list(_tables(ast.parse(source)))
    if not found:
        raise UnknownLayoutError(f"no model table (a dict named *model_map with {_KNOWN_ALIAS!r})")
    lines = _lines(source)
    for table in reversed(found):
        place = _closing_line(table, lines)
        lines[place:place] = _entries(table, lines)
    edited = "".join(lines)
    _check_tables(edited, len(found))
    return edited


def without_tables(source: str) -> str:
    """`source` with our aliases taken out of its model tables. Raises UnknownLayoutError."""
    lines = _lines(source)
    for table in reversed(list(_tables(ast.parse(source)))):
        for key, value in reversed(list(zip(table.keys, table.values, strict=True))):
            if key is not None and _text(key) in ALIASES:
                _check_whole_lines(lines, key, value)
                del lines[key.lineno - 1 : value.end_lineno]
    return "".join(lines)


def with_registration(source: str) -> str:
    """`source` of the host's models/__init__.py with our adapters registered."""
    source = without_registration(source)
    tree = ast.parse(source)
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    if not any((a.asname or a.name) == "register_adapter" for n in imports for a in n.names):
        raise UnknownLayoutError("register_adapter is not imported")
    lines = _lines(source)
    place = imports[-1].end_lineno or 0
    block = ["\n", *_REGISTRATION.splitlines(keepends=True)]
    lines[place:place] = [_line(text, lines) for text in block]
    edited = "".join(lines)
    ast.parse(edited)
    return edited


def without_registration(source: str) -> str:
    """`source` of the host's models/__init__.py without our registration."""
    lines = _lines(source)
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.Try) and _PACKAGE in _modules(node):
            blank = node.lineno - 2
            start = blank if not lines[blank].strip() else node.lineno - 1
            del lines[start : node.end_lineno]
        elif _PACKAGE in _modules(node):
            raise UnknownLayoutError(f"line {node.lineno} imports {_PACKAGE} in another way")
    return "".join(lines)


def _lines(source: str) -> list[str]:
    """Lines with their endings, numbered as the syntax tree numbers them."""
    if not source.endswith("\n"):
        raise UnknownLayoutError("the last line does not end")
    return io.StringIO(source, newline="").readlines()


def _modules(node: ast.AST) -> set[str]:
    return {n.module or "" for n in ast.walk(node) if isinstance(n, ast.ImportFrom)}


def _tables(tree: ast.AST) -> Iterator[ast.Dict]:
    """Dicts assigned to a name like model_map or PHYSICS_MODEL_MAP, in source order."""
    found = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Dict)
        and any(
            isinstance(t, ast.Name) and t.id.lower().endswith("model_map") for t in node.targets
        )
        and any(key is not None and _text(key) == _KNOWN_ALIAS for key in node.value.keys)
    ]
    yield from sorted(found, key=lambda table: table.lineno)


def _text(node: ast.expr) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def _closing_line(table: ast.Dict, lines: list[str]) -> int:
    """Where new entries go: the line of the closing brace, which must stand alone on it."""
    index = (table.end_lineno or 0) - 1
    last = table.values[-1]
    between = lines[(last.end_lineno or 0) - 1].encode()[last.end_col_offset :].decode()
    alone = lines[index].lstrip().startswith("}") and last.end_lineno != table.end_lineno
    if not alone or not between.lstrip().startswith(","):
        raise UnknownLayoutError(
            f"the model table at line {table.lineno} does not end with a comma and a brace "
            "on a line of its own"
        )
    return index


def _entries(table: ast.Dict, lines: list[str]) -> list[str]:
    """Our entries in the form of the table's first one: (sizes, names), or {size: name}."""
    key, value = table.keys[0], table.values[0]
    assert key is not None
    indent = " " * key.col_offset
    if lines[key.lineno - 1][: key.col_offset].strip():
        raise UnknownLayoutError(f"the model table at line {table.lineno} is not one entry a line")
    if isinstance(value, ast.Dict):
        rows = [_size_entry(alias) for alias in ALIASES]
    elif isinstance(value, ast.Tuple) and len(value.elts) == 2:
        rows = [_pair_entry(alias) for alias in ALIASES]
    else:
        raise UnknownLayoutError(
            f"the model table at line {table.lineno} holds neither (sizes, names) nor "
            "{size: name}"
        )
    return [_line(indent + line + "\n", lines) for row in rows for line in row]


def _pair_entry(alias: str) -> list[str]:
    sizes = ", ".join(f'"{size}"' for size in SIZES)
    names = [f'        "{name}",' for name in ALIASES[alias]]
    return [f'"{alias}": (', f"    [{sizes}],", "    [", *names, "    ],", "),"]


def _size_entry(alias: str) -> list[str]:
    pairs = zip(SIZES, ALIASES[alias], strict=True)
    return [f'"{alias}": {{', *(f'    "{size}": "{name}",' for size, name in pairs), "},"]


def _line(text: str, lines: list[str]) -> str:
    """`text` with the line ending of its file."""
    return text.replace("\n", "\r\n") if lines and lines[0].endswith("\r\n") else text


def _check_whole_lines(lines: list[str], key: ast.expr, value: ast.expr) -> None:
    before = lines[key.lineno - 1].encode()[: key.col_offset].decode()
    after = lines[(value.end_lineno or 0) - 1].encode()[value.end_col_offset :].decode()
    if before.strip() or after.strip() != ",":
        raise UnknownLayoutError(
            f"the entry {ast.unparse(key)} at line {key.lineno} shares its lines with others: "
            "remove it by hand"
        )


def _check_tables(edited: str, count: int) -> None:
    """The edit must have given each table every alias, with our sizes and names."""
    found = list(_tables(ast.parse(edited)))
    for table in found:
        by_alias = {_text(k): v for k, v in zip(table.keys, table.values, strict=True) if k}
        for alias, names in ALIASES.items():
            value = ast.literal_eval(by_alias[alias])
            assert value in ((list(SIZES), list(names)), dict(zip(SIZES, names, strict=True)))
    assert len(found) == count
