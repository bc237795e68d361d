"""`vim-embed-server`: serve, models, check, certify, fetch, bench, completion."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.shell_completion import CompletionItem, get_completion_class
from pydantic import BeforeValidator, ValidationError
from pydantic.fields import FieldInfo

from vim_embed import __version__
from vim_embed.serving.process_tuning import keep_freed_memory, spin_briefly
from vim_embed.settings import Settings
from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.cli.reading_options import reading_options
from vim_embed_client.cli.written_files import OutputPath, WritingCommand

FLAGS = {"models": "--model", "certificates": "--certificate"}  # those that repeat
_FILE = OutputPath(dir_okay=False)


EXIT_CODES = {
    0: "done; `serve`: stopped by SIGTERM or Ctrl-C after what was in flight",
    1: "a model, weights or a comparison failed, or the server could not start",
    2: "wrong usage or settings",
    130: "interrupted by Ctrl-C",
}


class Server(click.Group):
    """A group that an interrupt ends with its own exit code, and not with that of a failure."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            click.echo("Interrupted.", err=True)
            ctx.exit(130)


@click.group(
    cls=Server,
    epilog="Exit codes: " + "; ".join(f"{code} {text}" for code, text in EXIT_CODES.items()) + ".",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="vim-embed-server")
def main() -> None:
    """Native Vision Mamba and ViT proxies behind a batched HTTP API."""
    spin_briefly()  # torch is not imported yet


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One flag per setting; a flag that is not given leaves the environment in charge."""
    for name, field in reversed(Settings.model_fields.items()):
        command = _option(name, field)(command)
    return command


def _option(name: str, field: FieldInfo) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flag = FLAGS.get(name, "--" + name.replace("_", "-"))
    env = f"VIM_EMBED_{name.upper()}"
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    help_text = f"{field.description}  [{env}; {default}]"
    if field.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=help_text)
    if name in FLAGS:
        complete = _model_names if name == "models" else None
        return click.option(
            flag, name, multiple=True, default=None, help=help_text, shell_complete=complete
        )
    return click.option(flag, name, type=_kind(field), default=None, help=help_text)


def _model_names(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from vim_embed.weights.catalogue import CATALOGUE

    return [CompletionItem(name) for name in CATALOGUE if name.startswith(incomplete)]


def _kind(field: FieldInfo) -> click.ParamType[Any] | type:
    if any(isinstance(each, BeforeValidator) for each in field.metadata):
        return str  # read by the settings
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if choices:
        return click.Choice(choices)
    return {int: int, float: float}.get(field.annotation, str)  # type: ignore[arg-type]


def read_settings(flags: dict[str, Any]) -> Settings:
    """Settings from flags over environment over defaults. Raises click.UsageError."""
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    try:
        return Settings(**given)
    except ValidationError as error:
        problems = "; ".join(
            f"{FLAGS.get(str(p['loc'][0]), '--' + str(p['loc'][0]).replace('_', '-'))}: {p['msg']}"
            for p in error.errors()
        )
        raise click.UsageError(problems) from error


@main.command()
@settings_options
def serve(**flags: Any) -> None:
    """Serve models over HTTP until SIGTERM or Ctrl-C."""
    from vim_embed.observability.logs import configure_logging
    from vim_embed.server.server import serve as run

    settings = read_settings(flags)
    configure_logging(settings.log_level, settings.log_format)
    try:
        code = run(settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    sys.exit(code)


@main.command(short_help="List the models that have a name.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    """List the models that have a name, and where their weights come from."""
    from vim_embed.weights.catalogue import CATALOGUE

    rows = [
        {
            **{"name": e.name, "kind": e.kind, "repo": e.repo, "file": e.file},
            **{"packaged": e.packaged, "aliases": list(e.aliases)},
        }
        for e in CATALOGUE.values()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        source = f"{row['repo']}:{row['file']}" if row["file"] else row["repo"]
        source = source or (row["packaged"] and f"{row['packaged']} of this package")
        source = source or f"your own file: {row['name']}=PATH"
        click.echo(f"{row['name']:<21}  {row['kind']}  {source}")


@main.command(short_help="Load the models and say what would answer.")
@settings_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(as_json: bool, **flags: Any) -> None:
    """Load the models, run their self-checks, say what would answer; exit 1 if one cannot."""
    from vim_embed.engines.build import build_engines
    from vim_embed.engines.device_group import EngineGroup

    try:
        engine = EngineGroup(build_engines(read_settings(flags)))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    engine.load()
    statuses = list(engine.status().values())
    if as_json:
        click.echo(json.dumps([asdict(status) for status in statuses], indent=2))
    else:
        for status in statuses:
            click.echo(f"{status.name}: {status.state}{_summary(status)}")
    sys.exit(0 if all(status.state == "ready" for status in statuses) else 1)


@main.command(short_help="Bring weights to the local Hub cache.")
@click.argument("names", nargs=-1, required=True, metavar="MODEL...", shell_complete=_model_names)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fetch(names: tuple[str, ...], as_json: bool) -> None:
    """Bring weights to the local Hub cache (HF_HOME), for starts with HF_HUB_OFFLINE=1."""
    from vim_embed.errors import WeightsError
    from vim_embed.weights.catalogue import parse_model
    from vim_embed.weights.hub import digest_files, locate

    fetched = []
    for argument in names:
        try:
            located = locate(parse_model(argument))
        except (ValueError, WeightsError) as error:
            raise click.ClickException(str(error)) from error
        digest = digest_files(located.files)
        fetched.append(
            {
                "model": argument,
                "source": located.source,
                "revision": located.revision,
                "digest": digest,
            }
        )
        if not as_json:
            revision = f" at {located.revision}" if located.revision else ""
            click.echo(f"{argument}: {located.source}{revision}, {digest}")
    if as_json:
        click.echo(json.dumps(fetched, indent=2))


@main.command(cls=WritingCommand, short_help="Time the models on this machine.")
@settings_options
@click.option("--bare", is_flag=True, help="Only a loop over `embed`, in process, as JSON.")
@click.option(
    "--rows", type=click.IntRange(1), help="Rows of a call or request.  [default: 8; on CUDA 128]"
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Seconds of each way to deliver images, and of a forward at most one.",
)
@click.option(
    "--wire", type=click.Choice(["uint8", "float16", "float32"]),
    help="Of the loop: dtype of its images.  [default: uint8]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="As --bare.")
@click.option(
    "--dtypes", help="Several, with commas between, in place of --dtype: float32,float16."
)
@click.option("--http/--no-http", default=True, help="Measure a service over HTTP too.")
@click.option("--batches", help="On CUDA: batch sizes of forwards.  [default: 1,32,128,256]")
@click.option("--sizes", help="On CUDA: pixels of a side.  [default: 224]")
@click.option("--output", type=_FILE, help="On CUDA: write the tables there (Markdown).")
def bench(
    bare: bool,
    rows: int | None,
    seconds: float,
    wire: str | None,
    as_json: bool,
    dtypes: str | None,
    http: bool,
    batches: str | None,
    sizes: str | None,
    output: Path | None,
    **flags: Any,
) -> None:
    """Time the models on this machine: kernels, `embed` in this process, and HTTP.

    First images/s that reach the caller, by `embed` and over HTTP, as shares of the forward alone,
    and the fastest of the --dtypes that keeps --keep-neighbours, by the certificates. Then kernels
    with random weights: on CUDA forwards of Vims beside the public kernels and DeiT, and of ViT
    proxies beside transformers and timm, each after a comparison with the reference (exit 1 if
    that fails); on a CPU a Vim's kernels.
    """
    from vim_embed.bench.command import Plan, run, run_bare
    from vim_embed.weights.catalogue import ModelArgumentError

    settings = read_settings(flags)
    _set_threads(settings.threads)
    try:
        plan = Plan.of(settings, dtypes, rows, seconds)
    except ModelArgumentError as error:
        raise click.ClickException(str(error)) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    loop = {"--dtypes": dtypes, "--batches": batches, "--sizes": sizes, "--output": output}
    kernels = {name: loop[name] for name in ("--batches", "--sizes", "--output")}
    if bare or as_json:
        _no_effect(loop | {"--no-http": not http}, "with --bare or --json")
    else:
        _no_effect({"--wire": wire}, "without --bare or --json")
    if plan.device.type == "cpu":
        _no_effect(kernels, "on a CPU")
        keep_freed_memory()  # as the server does
    if bare or as_json:
        run_bare(plan, wire or "uint8")
    else:
        run(plan, batches=batches or "1,32,128,256", sizes=sizes or "224", http=http, output=output)


def _no_effect(given: Mapping[str, object], where: str) -> None:
    """Raises click.UsageError for options that have no effect there."""
    names = [name for name, value in given.items() if value]
    if names:
        raise click.UsageError(f"{', '.join(names)}: no effect {where}")


@main.command(
    cls=WritingCommand, short_help="Measure what a fast dtype keeps of float32, on your images."
)
@settings_options
@click.option(
    "--images", "paths", multiple=True, metavar="PATH",
    help="Files, folders or `hf:` data sets as `vim-embed embed` reads them; may be repeated.",
)  # fmt: skip
@click.option(
    "--sample", is_flag=True, help="The packaged Hubble picture's sources in place of --images."
)
@click.option(
    "--rows", default=1000, show_default=True, type=click.IntRange(20),
    help="Images at most, evenly chosen.",
)  # fmt: skip
@click.option(
    "--against", metavar="PATH",
    help="Weights of the original, where the model's were converted, pruned or merged from it.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=_FILE, metavar="FILE.json",
    help="Where to write, and FILE.md beside it.  [default: MODEL-DTYPE.certificate.json]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@reading_options
def certify(
    paths: tuple[str, ...],
    sample: bool,
    rows: int,
    against: str | None,
    output: Path | None,
    as_json: bool,
    read_options: ReadOptions,
    **flags: Any,
) -> None:
    """Measure what a fast dtype keeps of float32, on your weights and images.

    Runs the model in --dtype and, in float32, on the reference operations. Writes a certificate
    that `serve --certificate` reads, and a page for people. Exit 1 if it found faults, such as
    images that overflow or kernels that differ by more than rounding. See docs/precision.md.
    """
    from vim_embed.certify.command import run

    settings = read_settings(flags)
    if sample == bool(paths):
        raise click.UsageError("give --images PATH, or --sample")
    if sample and read_options.given():
        raise click.UsageError(f"{', '.join(sorted(read_options.given()))}: --sample has no use")
    _set_threads(settings.threads)
    run(
        settings,
        paths=paths,
        read_options=read_options,
        rows=rows,
        against=against,
        output=output,
        as_json=as_json,
    )


@main.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: `source <(vim-embed-server completion bash)`."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "vim-embed-server", "_VIM_EMBED_SERVER_COMPLETE").source())


def _set_threads(threads: int) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def _summary(status: Any) -> str:
    if status.info is None:
        return f"; {status.reason}"
    info = status.info
    revision = f" at {info.weights.revision}" if info.weights.revision else ""
    return (
        f"\n  weights  {info.weights.source}{revision}\n           {info.weights.digest}"
        f"\n  family   {info.family}, says {info.family_reason}"
        f"\n  backend  {info.backend} on {info.device} in {info.dtype}: {info.backend_reason}"
        f"\n  gives    {info.dim} numbers an image of {info.preprocessing.image_size} pixels"
    )


if __name__ == "__main__":
    main()
