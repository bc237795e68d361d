"""Catalogues of text whose columns have names, and whose values a sign or spaces separate.

CSV, VizieR's TSV, the tables of TOPCAT, numpy and 3D-HST. Layouts that describe each column are
astropy's (`astropy_tables`).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vim_embed_client.errors import InputError
from vim_embed_client.packing import unpacked_name
from vim_embed_client.sky.table_columns import Column, Columns, Part, frame_of
from vim_embed_client.sky.table_files import TableFile

# What stands in a text for a number that is missing.
NO_VALUE = frozenset({"", "null", "nan", "n/a", "none", "--"})

_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?(inf|nan)", re.I)
_SIGNS = ",;\t|"
_SPACES = " "
_NEVER_SPACES = (".csv", ".tsv")  # texts of which spaces are part
_LONG_DASHES = 3  # which a row of dashes, as for missing values, has not everywhere
_TABLE = "#Table\t"  # before each table of VizieR


@dataclass(frozen=True, kw_only=True)
class _Block:
    """One table of a file: the remarks at its top, and the lines from the first without a #."""

    remarks: list[str]
    body: str


def text_tables(file: TableFile) -> list[Part]:
    """The table of a text, or the tables of VizieR's. Raises InputError."""
    blocks = list(_blocks(file.text))
    if not blocks:
        raise InputError(f"{file.path} is empty")
    spaces = not unpacked_name(file.path.name).lower().endswith(_NEVER_SPACES)
    return [
        Part(number, _name(block), _columns(block, str(file.path), spaces))
        for number, block in enumerate(blocks)
    ]


def _blocks(text: str) -> Iterator[_Block]:
    """The text, cut before the remarks of each further table, if these are VizieR's."""
    several = _TABLE in text
    start = at = 0
    rows = False
    for line in text.splitlines(keepends=True):
        remark = line.startswith("#")
        if several and rows and remark:
            yield _block(text[start:at])
            start, rows = at, False
        rows |= not remark and bool(line.strip())
        at += len(line)
    if rows:
        yield _block(text[start:])


def _block(text: str) -> _Block:
    remarks = []
    while text.startswith(("#", "\n")):
        remark, _, text = text.partition("\n")
        remarks.append(remark)
    return _Block(remarks=remarks, body=text)


def _name(block: _Block) -> str:
    """What VizieR calls a table, such as `I/355/gaiadr3`."""
    names = [remark.partition(":")[2].strip() for remark in block.remarks if "#Name:" in remark]
    return names[-1] if names else ""


def _columns(block: _Block, path: str, spaces: bool) -> Columns:
    first = block.body.partition("\n")[0]
    names, sign = _names(block.remarks, first, path, spaces)
    rows = list(_rows(block.body, sign))
    if names is None:
        names = [name.strip() for name in rows.pop(0)]
    units, rows = _units(rows, len(names))
    _check(rows, names, sign, path)
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{path} has several columns {twice[0]!r}: name them apart")

    def reader(place: int) -> Callable[[], list[str]]:
        return lambda: [row[place].strip() if place < len(row) else "" for row in rows]

    frame = _frame(block.remarks)
    return {
        name: Column(reader(place), units[place] if units else "", frame)
        for place, name in enumerate(names)
    }


def _names(
    remarks: Sequence[str], first: str, path: str, spaces: bool
) -> tuple[list[str] | None, str]:
    """Names that stand in a remark, as `#ra,dec` above `150.1,2.2`, or None; and the separator."""
    signs = sorted((sign for sign in _SIGNS if sign in first), key=first.count, reverse=True)
    if spaces:  # tabs that align the columns are spaces
        signs = [sign for sign in signs if all(_fields(first, sign))]
    ways = signs + ([_SPACES] if spaces and len(first.split()) > 1 else [])
    numbers = [bool(_NUMBER.fullmatch(field.strip())) for field in _fields(first, (ways or ",")[0])]
    if not any(numbers):
        return None, (ways or ",")[0]
    for sign in ways:
        count = len(_fields(first, sign))
        found = [fields for fields in _fields_of(remarks, sign, count) if _may_be_names(fields)]
        found = found if spaces else found[-1:]
        if len(found) > 1:
            raise InputError(
                f"{path} has several lines that may be the names of its {count} columns, such as "
                f"{' '.join(found[0])!r} and {' '.join(found[1])!r}: leave one of them"
            )
        if found:
            return found[0], sign
    if all(numbers) or (spaces and (ways or ",")[0] == _SPACES):
        raise InputError(
            f"{path} has no names of its columns, and begins with {first.strip()[:60]!r}: write "
            "them into its first line, such as id ra dec"
        )
    return None, (ways or ",")[0]


def _fields_of(remarks: Sequence[str], sign: str, count: int) -> Iterator[list[str]]:
    """The remarks of so many fields, each once."""
    found = (_fields(remark.lstrip("# "), sign) for remark in remarks)
    yield from map(list, dict.fromkeys(tuple(one) for one in found if len(one) == count))


def _may_be_names(fields: Sequence[str]) -> bool:
    """Whether fields differ and are no numbers, as units and places, `deg deg` and `(1) (2)`, are
    not."""
    plain = [field.strip("()[]") for field in fields]
    return len(set(fields)) == len(fields) and not any(map(_NUMBER.fullmatch, plain))


def _fields(line: str, sign: str) -> list[str]:
    found: list[str] = next(_rows(line, sign), [])
    return [field.strip() for field in found]


def _rows(body: str, sign: str) -> Iterator[list[str]]:
    """Rows that are not empty, without remarks between them."""
    text = _without_edges(body, sign) if sign in "| " else body
    rows = csv.reader(
        io.StringIO(text, newline=""), delimiter=sign, skipinitialspace=sign == _SPACES
    )
    return (row for row in rows if any(row))


def _without_edges(body: str, sign: str) -> str:
    """Lines without spaces, or bars, at their ends, and without remarks."""
    lines = (line.strip() for line in body.split("\n"))
    kept = [line for line in lines if line and not line.startswith(("#", "+-"))]
    if sign == _SPACES:
        return "\n".join(line.replace("\t", " ") for line in kept)
    if all(line.startswith("|") and line.endswith("|") for line in kept):
        kept = [line[1:-1] for line in kept]
    return "\n".join(kept)


def _units(rows: list[list[str]], count: int) -> tuple[list[str], list[list[str]]]:
    """The units between the names and a line of dashes, and the rows below; none without one."""
    for place, row in enumerate(rows[:2]):
        fields = [field.strip() for field in row]
        if any(len(f) >= _LONG_DASHES for f in fields) and not any(f.strip("-+:") for f in fields):
            units = [field.strip() for field in rows[0]] if place else []
            return units + [""] * (count - len(units)), rows[place + 1 :]
    return [], rows


def _check(rows: list[list[str]], names: Sequence[str], sign: str, path: str) -> None:
    """Drop remarks between the rows; raise InputError for a row of another length."""
    rows[:] = [row for row in rows if len(row) >= len(names) or not row[0].startswith("#")]
    for number, row in enumerate(rows, 1):
        if any(row[len(names) :]) or (sign == _SPACES and len(row) < len(names)):
            fix = f"quote texts that hold a {sign!r}"
            if sign == _SPACES:
                fix += ", and write nan where there is no value"
            raise InputError(
                f"{path}: row {number} has {len(row)} values, and the first line {len(names)} "
                f"names: {fix}"
            )


def _frame(remarks: Sequence[str]) -> str:
    """The one that VizieR tells of its tables, as `#Coosys B1950: eq_FK4 B1950`."""
    told = [remark.split()[2:] for remark in remarks if remark.startswith("#Coosys")]
    frames = {frame_of(one[0], one[1] if len(one) > 1 else "") for one in told if one}
    return frames.pop() if len(frames) == 1 else ""
