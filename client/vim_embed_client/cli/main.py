"""The `vim-embed` command: subcommands are imported only when they are used."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

import click
from click.shell_completion import CompletionItem

from vim_embed_client.errors import (
    ConfigurationError,
    OutputError,
    ResumeError,
    ServerUnreachableError,
    VimEmbedError,
)

EXIT_CODES = {
    0: "done",
    1: "the service reported a failure, an input cannot be used, or something went wrong",
    2: "wrong usage: an option, a file or a package that is not there",
    3: "the service cannot be reached",
    4: "finished rows of another run are in the way (`vim-embed embed --help`)",
    5: "embed wrote its file, and left out rows that it could not read or embed (--on-error skip)",
    130: "interrupted by Ctrl-C or SIGTERM",
}

# A disk that is full, a quota or a limit of files that is reached, a disk that one may only read.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_PACKAGE = "vim_embed_client"
_COMMANDS = f"{_PACKAGE}.cli"


class Lazy(NamedTuple):
    """Where a subcommand is, its line in the help, and the extra it may need."""

    target: str
    help: str
    extra: str | None = None


COMMANDS = {
    "embed": Lazy("embed:embed", "Embed images and arrays into one file."),
    "preview": Lazy("preview:preview", "Draw a sheet of what a model would see."),
    "cutout": Lazy("cutout:cutout", "Cut galaxies out of mosaics at a catalogue's positions."),
    "models": Lazy("info:models", "List the models that the service has."),
    "health": Lazy("info:health", "Ask whether the service takes requests."),
    "score": Lazy("score:score", "Score how far two embeddings agree (MKNN and others)."),
    "table": Lazy("table:table_command", "Score many models on many surveys."),
    "layers": Lazy("layers:layers_command", "Score every layer of a file with every other."),
    "compare": Lazy("compare:compare_command", "Compare models on the same sources."),
    "neighbours": Lazy(
        "neighbours:neighbours", "Draw sources beside those that a model finds alike."
    ),
    "map": Lazy("map:map_command", "Draw embeddings as points on a plane."),
    "join": Lazy("join:join", "Put two surveys in one table, for platonic-universe."),
    "explain": Lazy("explain:explain", "Draw where a Vim looks: hidden attention and token norms."),
    "bench": Lazy("bench:bench", "Measure rows per second and latency."),
    "attach": Lazy("attach:attach", "Teach platonic-universe the models of vim-embed."),
    "demo": Lazy("demo:demo", "Run everything once on real galaxies.", "demo"),
    "completion": Lazy("completion:completion", "Print the completion script of a shell."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported on use, so that `--help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = COMMANDS.get(cmd_name)
        return _load(lazy) if lazy else None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = [
            CompletionItem(name, help=lazy.help)
            for name, lazy in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in COMMANDS.items()])


def _load(lazy: Lazy) -> click.Command:
    module, _, name = lazy.target.partition(":")
    try:
        command: click.Command = getattr(importlib.import_module(f"{_COMMANDS}.{module}"), name)
    except ModuleNotFoundError as error:
        if lazy.extra is None or (error.name or "").startswith(_PACKAGE):
            raise
        raise ConfigurationError(
            f'this command needs {error.name}: pip install "vim-embed[{lazy.extra}]"'
        ) from None
    return command


def _epilog() -> str:
    codes = "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    return f"Exit codes: {codes}."


@click.group(
    cls=LazyGroup,
    epilog=_epilog(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(version("vim-embed"), prog_name="vim-embed")
def cli() -> None:
    """Embed images with native Vision Mamba models and ViT proxies, through a vim-embed service.

    The service is found through --url or VIM_EMBED_URL (default http://127.0.0.1:8000).
    """


def run(args: Sequence[str]) -> int:
    """Run the command line and return its exit code, one of EXIT_CODES."""
    try:
        code = cli.main(args=list(args), prog_name="vim-embed", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        click.echo("Interrupted.", err=True)
        return 130
    except VimEmbedError as error:
        _tell(error)
        return _exit_code(error)
    except BrokenPipeError:
        _drop_output()  # its reader has gone
        return 1
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        what = error.filename or "the output"
        _tell(OutputError(
            f"{what} cannot be written ({error.strerror}): free space there, or choose another "
            "folder"
        ))  # fmt: skip
        _drop_output()
        return 1


def _drop_output() -> None:
    """Keep Python from complaining when it flushes what nobody takes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(error: VimEmbedError) -> None:
    from rich.markup import escape

    from vim_embed_client.cli.common import say, stderr

    say(stderr(), escape(f"Error: {error}"))


def _exit_code(error: VimEmbedError) -> int:
    if isinstance(error, ServerUnreachableError):
        return 3
    if isinstance(error, ResumeError):
        return 4
    return 2 if isinstance(error, ConfigurationError) else 1


def main() -> None:
    """The console script. SIGTERM ends it like Ctrl-C, so that a service it started ends too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
