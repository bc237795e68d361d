"""Tables of results as CSV, LaTeX (with booktabs) or Markdown, with where the numbers come from."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vim_embed_client.scoring.embedding_files import EmbeddingFile

_LATEX = {letter: "\\" + letter for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ResultTable:
    """records: a dictionary for each row with its numbers as they are, for CSV. head, rows: what
    people read, as text. notes: lines that say where the numbers come from and what they are.
    """

    records: Sequence[Mapping[str, Any]]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


def write_table(path: Path, table: ResultTable) -> None:
    """Write the table in the format that the path ends in, one of TABLE_FORMATS."""
    TABLE_FORMATS[path.suffix.lower()](path, table)


def _write_csv(path: Path, table: ResultTable) -> None:
    with path.open("w", newline="", encoding="utf-8") as lines:
        lines.writelines(f"# {note}\n" for note in table.notes)
        writer = csv.DictWriter(lines, list(table.records[0]))
        writer.writeheader()
        writer.writerows(table.records)


def _write_latex(path: Path, table: ResultTable) -> None:
    columns = "l" + "r" * (len(table.head) - 1)
    lines = [
        *(f"% {note}" for note in table.notes),
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_row(table.head),
        r"\midrule",
        *map(_latex_row, table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _latex_row(cells: Sequence[str]) -> str:
    texts = ("".join(_LATEX.get(letter, letter) for letter in cell) for cell in cells)
    return " & ".join(texts) + r" \\"


def _write_markdown(path: Path, table: ResultTable) -> None:
    align = ["---", *["---:"] * (len(table.head) - 1)]
    lines = [_markdown_row(table.head), "|" + "|".join(align) + "|"]
    lines += [_markdown_row(row) for row in table.rows]
    lines += ["", *(f"- {note}" for note in table.notes)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


TABLE_FORMATS: dict[str, Callable[[Path, ResultTable], None]] = {
    ".csv": _write_csv,
    ".tex": _write_latex,
    ".md": _write_markdown,
}


def provenance_notes(files: Sequence[EmbeddingFile]) -> list[str]:
    """A line for each file: what it is called, its model, and whether the weights were random."""
    return [
        f"{file.label}: {file.origin}" + (", RANDOM WEIGHTS" if file.random_weights else "")
        for file in files
    ]


def interval_text(low: float, high: float, form: str = ".4f") -> str:
    """`0.1000 to 0.2000`, or nothing where there is no interval."""
    return "" if low != low else f"{low:{form}} to {high:{form}}"


def number_text(value: float, form: str = ".4f") -> str:
    """The number, or nothing for NaN."""
    return "" if value != value else format(value, form)


def p_text(value: float) -> str:
    """A p value, which is never 0; nothing for NaN."""
    return "< 0.0001" if value < 0.0001 else number_text(value)
