"""Options in groups, so that the help of a command with many of them stays readable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from vim_embed_client.cli.written_files import WritingCommand

F = TypeVar("F", bound=Callable[..., Any])

_GROUP = "_vim_embed_group"
_OTHERS = "Options"


def grouped(title: str, *options: Callable[[Any], Any]) -> Callable[[F], F]:
    """A decorator that adds options, which the help of a GroupedCommand lists under `title`."""

    def add(command: F) -> F:
        for option in reversed(options):
            option(command)
            setattr(command.__click_params__[-1], _GROUP, title)  # type: ignore[attr-defined]
        return command

    return add


class GroupedCommand(WritingCommand):
    """A command whose help has a section for each group, after the options without one."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {_OTHERS: []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, _GROUP, _OTHERS), []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
