"""Commands that write files, and refuse to write over those that they read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from vim_embed_client.errors import ConfigurationError
from vim_embed_client.paths import check_folder_of, not_there


class WrongPath(click.ClickException):
    """A path that leads to nothing, told without the usage of the command."""

    exit_code = 2


@contextmanager
def _as_usage() -> Iterator[None]:
    """Raise WrongPath for a ConfigurationError: other programs than vim-embed have such paths."""
    try:
        yield
    except ConfigurationError as error:
        raise WrongPath(error.message) from None


class OutputPath(click.Path):
    """The path of what a command writes.

    left_out_of: the parameter with the command's sources, if it leaves out of them what an earlier
    run wrote at this path, and refuses every other file there.
    """

    def __init__(self, *, dir_okay: bool = True, left_out_of: str | None = None) -> None:
        super().__init__(dir_okay=dir_okay, path_type=Path)
        self.left_out_of = left_out_of

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if ctx is None or not ctx.resilient_parsing:
            with _as_usage():
                check_folder_of(path)
        return path


class InputPath(click.Path):
    """The path of a file that a command reads. One that is not there is told as everywhere."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.exists() and (ctx is None or not ctx.resilient_parsing):
            with _as_usage():
                raise not_there(path)
        return path


class WritingCommand(click.Command):
    """A command that compares its outputs with all that it was given, before any work.

    An output that is one of these files, by whatever path or link, is a usage error.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = self.make_parser(ctx).parse_args(list(args))[0]
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            self._refuse_inputs(given)
        return rest

    def _refuse_inputs(self, given: dict[str, Any]) -> None:
        """given: by parameter, the texts as they were typed."""
        inputs = [one for one in self.params if not isinstance(one.type, OutputPath)]
        for output in self.params:
            kind, option = output.type, output.opts[0]
            if not isinstance(kind, OutputPath):
                continue
            read = [one for one in inputs if one.name != kind.left_out_of]
            for path in _texts(given, output):
                if os.path.isfile(path) and (told := _told_of(path, read, given)):
                    raise click.UsageError(
                        f"{option} {path} would replace what is read ({told}): give another "
                        f"{option}"
                    )


def _told_of(path: str, inputs: list[click.Parameter], given: dict[str, Any]) -> str | None:
    """The input that is the file at this path, as it was typed."""
    file = os.stat(path)
    for param in inputs:
        for text in _texts(given, param):
            if any(_leads_to(file, one) for one in _paths_in(text)):
                return text if isinstance(param, click.Argument) else f"{param.opts[0]} {text}"
    return None


def _leads_to(file: os.stat_result, path: str) -> bool:
    try:
        return os.path.samestat(file, os.stat(path))
    except (OSError, ValueError):  # most texts are no paths
        return False


def _texts(given: dict[str, Any], param: click.Parameter) -> Iterator[str]:
    """What was given for a parameter, which may be repeated."""
    value = given.get(param.name or "")
    for one in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(one, str):
            yield one


def _paths_in(text: str) -> Iterator[str]:
    """What may be a path in `FILE`, `FILE:COLUMN`, `FILE[2]:COLUMN` or `NAME=FILE,FILE`."""
    for whole in (text, text.partition("=")[2]):
        for one in (whole, *whole.split(",")):
            yield one
            for mark in re.finditer(r"[:\[]", one):
                yield one[: mark.start()]
