"""A certificate: FILE.json, which `serve --certificate` reads, and FILE.md beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import click

from vim_embed.certify.report import HEADING, Report, as_json, as_markdown
from vim_embed_client.bulk.durable_files import write_durably
from vim_embed_client.bulk.output_checks import refuse_foreign
from vim_embed_client.errors import ConfigurationError
from vim_embed_client.paths import check_folder_of


def page_of(path: Path) -> Path:
    """The page for people beside a certificate."""
    return path.with_suffix(".md")


def check_output(path: Path) -> None:
    """Refuse, before any work, what could not be written or would replace another's file.

    Raises click.UsageError.
    """
    if path.suffix != ".json":
        raise click.UsageError(f"-o {path} does not end in .json: its page is written beside it")
    try:
        check_folder_of(path)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise click.UsageError(f"{path} cannot be written: {path.parent} is not yours")
        for one, is_ours in ((path, _is_certificate), (page_of(path), _is_page)):
            if one.is_dir():
                raise click.UsageError(f"{one} is a folder: give another -o")
            refuse_foreign(one, is_ours, "vim-embed-server certify")
    except ConfigurationError as error:
        raise click.UsageError(error.message) from error


def write(report: Report, path: Path) -> None:
    """Both files, each whole or not at all. Raises click.ClickException."""
    texts: tuple[tuple[Path, Callable[[Report], str]], ...] = (
        (path, as_json),
        (page_of(path), as_markdown),
    )
    for name, as_text in texts:
        content = as_text(report).encode()
        try:
            write_durably(name, lambda file, content=content: file.write(content))  # type: ignore[misc]
        except OSError as error:
            raise click.ClickException(f"{name} cannot be written: {error.strerror}") from error


def _is_certificate(path: Path) -> bool:
    return "weights_digest" in json.loads(path.read_text())["certificate"]


def _is_page(path: Path) -> bool:
    with path.open(encoding="utf-8") as lines:
        return lines.readline().startswith(HEADING)
