"""Writes the parts of the documentation that come from the code: `make docs`.

The tests compare; this script writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from vim_embed import cli as server_cli
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.errors import ERRORS
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client.cli import main as client_cli

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SETTINGS = ROOT / "docs" / "settings.md"
CLI = ROOT / "docs" / "cli.md"
OPENAPI = ROOT / "docs" / "openapi.json"
_SECTION = re.compile(
    r"(<!-- (?P<name>[\w-]+): begin -->\n).*?(<!-- (?P=name): end -->)", re.DOTALL
)
_SETTINGS = re.compile(r"(<!-- settings: begin -->\n).*?(<!-- settings: end -->)", re.DOTALL)


def settings_table() -> str:
    """The table of docs/settings.md: flag, environment variable, default, meaning."""
    lines = ["| flag | environment | default | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        flag = server_cli.FLAGS.get(name, "--" + name.replace("_", "-"))
        default = field.default
        shown = ",".join(default) if isinstance(default, tuple) else str(default).lower()
        meaning = f"{field.description}"
        value = f"`{shown}`" if shown else "empty"
        lines.append(f"| `{flag}` | `VIM_EMBED_{name.upper()}` | {value} | {meaning} |")
    return "\n".join(lines) + "\n"


def page_with_settings(text: str) -> str:
    """`text` with the settings table of the code."""
    return _SETTINGS.sub(lambda match: match[1] + settings_table() + match[2], text)


def openapi_text() -> str:
    """The OpenAPI document of the service, as committed."""
    document = create_app(Settings(), ArithmeticEngine()).openapi()
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def error_rows() -> list[tuple[str, str, str]]:
    """(status, code, retry) of every error, as docs/http.md writes them."""
    return [(str(e.status), f"`{e.code}`", "yes" if e.retryable else "no") for e in ERRORS]


def exit_codes(codes: Mapping[int, str]) -> str:
    """The table of a command's exit codes."""
    rows = [f"| {code} | {meaning} |" for code, meaning in codes.items()]
    return "\n".join(["| code | meaning |", "|---|---|", *rows]) + "\n"


def commands(group: click.Group, name: str) -> str:
    """Every command of a group with its arguments, options and help."""
    parent = click.Context(group, info_name=name)
    parts = []
    for command_name in group.list_commands(parent):
        command = group.get_command(parent, command_name)
        assert command is not None
        context = click.Context(command, info_name=command_name, parent=parent)
        usage = " ".join(command.collect_usage_pieces(context))
        parts.append(f"### `{name} {command_name}`\n\n{_paragraphs(command)}")
        parts.append(f"Usage: `{name} {command_name} {usage}`\n")
        rows = list(_options(command, context))
        if rows:
            parts.append("\n".join(["| option | meaning |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _paragraphs(command: click.Command) -> str:
    text = " ".join((command.help or "").replace("\n\n", "\0").split())
    return text.replace("\0 ", "\n\n").replace("\0", "\n\n") + "\n"


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    settings = [p for p in command.params if p.name in Settings.model_fields]
    listed = command.name == "serve" or len(settings) < len(Settings.model_fields)
    for param in command.params:
        record = param.get_help_record(context) if isinstance(param, click.Option) else None
        if record is not None and (listed or param not in settings):
            option, meaning = (" ".join(text.split()).replace("|", "\\|") for text in record)
            yield f"| `{option}` | {meaning} |"
    if not listed:
        yield "| the settings | those of `vim-embed-server serve` |"


def cli_with_commands(text: str) -> str:
    """docs/cli.md with the commands, options and exit codes of the code."""
    sections = {
        "vim-embed": commands(client_cli.cli, "vim-embed"),
        "vim-embed-server": commands(server_cli.main, "vim-embed-server"),
        "vim-embed-codes": exit_codes(client_cli.EXIT_CODES),
        "vim-embed-server-codes": exit_codes(server_cli.EXIT_CODES),
    }
    return _SECTION.sub(lambda match: match[1] + sections[match["name"]] + match[3], text)


def main() -> None:
    CLI.write_text(cli_with_commands(CLI.read_text()))
    SETTINGS.write_text(page_with_settings(SETTINGS.read_text()))
    OPENAPI.write_text(openapi_text())


if __name__ == "__main__":
    main()
