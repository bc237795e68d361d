"""Edits of the host's source: model tables learn our aliases, the registry our adapters.

Places are found in the syntax tree. What is inserted are whole lines between two marks, and only
what stands between marks is ever taken out; foreign lines that are replaced stay as comments. So
taking ours out gives back the file byte for byte. Knows text only: no files here.
"""

from __future__ import annotations

import ast
import io
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

from vim_embed_client.platonic.aliases import (
    TWINS,
    Names,
    own_aliases,
    twin_alias,
    twin_aliases,
)

_PACKAGE = "vim_embed_client.platonic"
_KNOWN_ALIAS = "vit"  # every table of the host has it
_BEGIN = "# vim-embed: begin"
_END = "# vim-embed: end"
_REPLACED = "# vim-embed replaced: "
_REGISTRATION = f"""\
{_BEGIN}
try:  # optional: pip install vim-embed
    from {_PACKAGE} import register_aliases
except ModuleNotFoundError:
    pass
else:
    register_aliases(register_adapter%s)
{_END}
"""


# What a value in the host's tables may be made of; these parts alone are computed.
class UnknownLayoutError(ValueError):
    """Source that is not what this edit was made for; the message says what is missing."""


class ForeignAliasError(ValueError):
    """Source that has a model of one of our names already; the message names it."""


def with_tables(source: str, twins: Collection[str] = (), *, replace: bool = False) -> str:
    """`source` with our aliases in each of its model tables.

    twins: which of the host's models get a remote twin, in the tables that have them. An alias
    that is there already with our sizes and names is left alone. One with others raises
    ForeignAliasError; with `replace`, or where that was done before, it becomes a comment.
    Raises UnknownLayoutError for other layouts.
    """
    replace = replace or _REPLACED in source
    source = without_marked(source)
    found = list(_tables(ast.parse(source)))
    if not found:
        raise UnknownLayoutError(f"no model table (a dict named *model_map with {_KNOWN_ALIAS!r})")
    lines = _lines(source)
    entries = [_entries_of(table, twins) for table in found]
    for table, wanted in reversed(list(zip(found, entries, strict=True))):
        same, foreign = _present(table, wanted)
        if foreign and not replace:
            key, _ = foreign[0]
            raise ForeignAliasError(
                f"line {key.lineno} has a model {_text(key)!r} that is not vim-embed's"
            )
        place = _closing_line(table, lines)
        missing = {alias: names for alias, names in wanted.items() if alias not in same}
        if missing:
            lines[place:place] = _entries(table, lines, missing)
        for key, value in reversed(foreign):
            _check_whole_lines(lines, key, value)
            rows = slice(key.lineno - 1, value.end_lineno)
            lines[rows] = [_REPLACED + line for line in lines[rows]]
    edited = "".join(lines)
    _check_tables(edited, entries)
    return edited


def host_models(source: str) -> dict[str, Names]:
    """The host's models that a service can be a twin of, in any of the tables of `source`."""
    found: dict[str, Names] = {}
    for table in _tables(ast.parse(without_marked(source))):
        for alias, value in _with_twins(table):
            with suppress(UnknownLayoutError):  # said where its twin is wanted
                found[alias] = {**found.get(alias, {}), **_names(alias, value)}
    return found


def attached_twins(source: str) -> set[str]:
    """The host's models whose remote twins the tables of `source` have."""
    keys = {_text(key) for table in _tables(ast.parse(source)) for key in table.keys if key}
    return {alias for alias in TWINS if twin_alias(alias) in keys}


def without_marked(source: str) -> str:
    """`source` without what stands between our marks, and with what it replaced.

    Raises UnknownLayoutError where a mark lacks its other one.
    """
    kept: list[str] = []
    inside = False
    for number, line in enumerate(_lines(source), 1):
        mark = line.strip()
        if mark in (_BEGIN, _END):
            if (mark == _BEGIN) == inside:
                raise UnknownLayoutError(f"line {number} is {mark!r} without its other mark")
            inside = mark == _BEGIN
        elif not inside:
            kept.append(line.removeprefix(_REPLACED))
    if inside:
        raise UnknownLayoutError(f"{_BEGIN!r} without {_END!r}")
    return "".join(kept)


def with_registration(source: str, twins: Mapping[str, Names] | None = None) -> str:
    """`source` of the host's models/__init__.py with our adapters registered after all others.

    twins: of which of the host's models, with their sizes and names. A source that registers
    adapters without our marks is left alone. Raises UnknownLayoutError.
    """
    source = without_marked(source)
    tree = ast.parse(source)
    if _registers(tree):
        return source
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    if not any((a.asname or a.name) == "register_adapter" for n in imports for a in n.names):
        raise UnknownLayoutError("register_adapter is not imported")
    foreign = {line for line, _ in foreign_adapters(source, twins)}
    others = [n for n in tree.body if foreign & set(range(n.lineno, (n.end_lineno or 0) + 1))]
    place = max(node.end_lineno or 0 for node in [*imports, *others])
    lines = _lines(source)
    registration = (_REGISTRATION % _twins_argument(twins or {})).splitlines(keepends=True)
    lines[place:place] = [_line(text, lines) for text in registration]
    edited = "".join(lines)
    ast.parse(edited)
    return edited


def foreign_adapters(
    source: str, twins: Mapping[str, Names] | None = None
) -> list[tuple[int, str]]:
    """(line, alias) of each register_adapter("vim", ...) of one of our names, outside our marks."""
    ours = own_aliases() | twin_aliases(twins or {})
    return [
        (node.lineno, str(_text(node.args[0])))
        for node in ast.walk(ast.parse(without_marked(source)))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("register_adapter")
        and node.args
        and _text(node.args[0]) in ours
    ]


def _twins_argument(twins: Mapping[str, Names]) -> str:
    """The second argument of register_aliases, as lines of source."""
    if not twins:
        return ""
    lines = [", {"]
    for alias, names in twins.items():
        pairs = (f'            "{size}": "{name}",' for size, name in names.items())
        lines += [f'        "{alias}": {{', *pairs, "        },"]
    return "\n".join([*lines, "    }"])


def _registers(tree: ast.Module) -> bool:
    """Whether the source registers our adapters by itself, without marks."""
    importing = [node for node in tree.body if _PACKAGE in _modules(node)]
    if not importing:
        return False
    called = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    if not any(ast.unparse(call.func).endswith("register_aliases") for call in called):
        raise UnknownLayoutError(f"line {importing[0].lineno} imports {_PACKAGE} in another way")
    return True


def _entries_of(table: ast.Dict, twins: Collection[str]) -> dict[str, Names]:
    """All that a table is to have of ours: alias -> size -> model name."""
    theirs = {alias: _names(alias, v) for alias, v in _with_twins(table) if alias in twins}
    return own_aliases() | twin_aliases(theirs)


def _with_twins(table: ast.Dict) -> Iterator[tuple[str, ast.expr]]:
    """The entries of models that a service can be a twin of."""
    for key, value in zip(table.keys, table.values, strict=True):
        alias = str(_text(key)) if key is not None else ""
        if alias in TWINS:
            yield alias, value


def _names(alias: str, value: ast.expr) -> Names:
    """Size -> model name, of an entry (sizes, names) or {size: name} of the host's."""
    try:
        entry = _written(value, {})
        names = dict(entry) if isinstance(entry, dict) else dict(zip(*entry, strict=True))
    except (ValueError, TypeError):
        raise UnknownLayoutError(
            f"the entry {alias!r} at line {value.lineno} holds neither (sizes, names) nor "
            "{size: name}"
        ) from None
    return {str(size): str(name) for size, name in names.items()}


def _written(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """What an expression of lists, texts and loops over these says; nothing of it is run.

    `[f"facebook/{s}" for s in ["a", "b"]]` gives `["facebook/a", "facebook/b"]`.
    Raises ValueError for anything else.
    """
    match node:
        case ast.Constant(value):
            return value
        case ast.List(parts) | ast.Tuple(parts):
            return [_written(part, names) for part in parts]
        case ast.Dict(keys, values):
            found = [None if key is None else _written(key, names) for key in keys]
            return dict(zip(found, (_written(one, names) for one in values), strict=True))
        case ast.Name(name) if name in names:
            return names[name]
        case ast.JoinedStr(parts):
            return "".join(_written(part, names) for part in parts)
        case ast.FormattedValue(value, conversion=-1, format_spec=None):
            return str(_written(value, names))
        case ast.ListComp(each, [ast.comprehension(ast.Name(name), over, [], 0)]):
            return [_written(each, {**names, name: one}) for one in _written(over, names)]
    raise ValueError(f"not a plain value: {ast.unparse(node)}")


def _present(
    table: ast.Dict, wanted: Mapping[str, Names]
) -> tuple[set[str], list[tuple[ast.expr, ast.expr]]]:
    """Which of our aliases a table has as we would write them, and the entries of the others."""
    same: set[str] = set()
    foreign = []
    for key, value in zip(table.keys, table.values, strict=True):
        alias = _text(key) if key is not None else None
        if key is None or not isinstance(alias, str) or alias not in wanted:
            continue
        if _is_ours(wanted[alias], value):
            same.add(alias)
        else:
            foreign.append((key, value))
    return same, foreign


def _is_ours(names: Names, value: ast.expr) -> bool:
    try:
        found = ast.literal_eval(value)
    except ValueError:
        return False
    return found in ((list(names), list(names.values())), names)


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


def _entries(table: ast.Dict, lines: list[str], wanted: Mapping[str, Names]) -> list[str]:
    """Our entries in the form of the table's first one: (sizes, names), or {size: name}."""
    key, value = table.keys[0], table.values[0]
    assert key is not None
    indent = " " * key.col_offset
    if lines[key.lineno - 1][: key.col_offset].strip():
        raise UnknownLayoutError(f"the model table at line {table.lineno} is not one entry a line")
    if isinstance(value, ast.Dict):
        rows = [_size_entry(alias, names) for alias, names in wanted.items()]
    elif isinstance(value, ast.Tuple) and len(value.elts) == 2:
        rows = [_pair_entry(alias, names) for alias, names in wanted.items()]
    else:
        raise UnknownLayoutError(
            f"the model table at line {table.lineno} holds neither (sizes, names) nor "
            "{size: name}"
        )
    marked = [_BEGIN, *(line for row in rows for line in row), _END]
    return [_line(indent + line + "\n", lines) for line in marked]


def _pair_entry(alias: str, names: Names) -> list[str]:
    sizes = ", ".join(f'"{size}"' for size in names)
    if len(names) == 1:
        return [f'"{alias}": ([{sizes}], ["{names[next(iter(names))]}"]),']
    rows = [f'        "{name}",' for name in names.values()]
    return [f'"{alias}": (', f"    [{sizes}],", "    [", *rows, "    ],", "),"]


def _size_entry(alias: str, names: Names) -> list[str]:
    if len(names) == 1:
        return [f'"{alias}": {{"{size}": "{name}"}},' for size, name in names.items()]
    return [f'"{alias}": {{', *(f'    "{size}": "{name}",' for size, name in names.items()), "},"]


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


def _check_tables(edited: str, entries: list[dict[str, Names]]) -> None:
    """The edit must have given each table every alias, with our sizes and names."""
    for table, wanted in zip(_tables(ast.parse(edited)), entries, strict=True):
        same, foreign = _present(table, wanted)
        assert same == set(wanted)
        assert not foreign
