"""Completion in real shells, `--json` on every command that prints results, and exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import click
import pytest

from vim_embed import cli as server_cli
from vim_embed.weights.catalogue import CATALOGUE
from vim_embed_client.cli import main as client_cli
from vim_embed_client.cli.main import COMMANDS, run

BIN = Path(sys.executable).parent
PATH = f"{BIN}:{os.environ['PATH']}"
GROUPS = {"vim-embed": client_cli.cli, "vim-embed-server": server_cli.main}


@cache
def completion_script(program: str) -> str:
    """The script that the program prints for bash."""
    command = [str(BIN / program), "completion", "bash"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def complete(program: str, words: list[str]) -> list[str]:
    """What bash offers for the last of the words, by the script that the program prints."""
    function = f"_{program.replace('-', '_')}_completion"
    script = (
        f"{completion_script(program)}\nCOMP_WORDS=({program} {' '.join(words[:-1])} "
        f"'{words[-1]}'); COMP_CWORD={len(words)}; {function} {program}; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=True, timeout=60,
        env=os.environ | {"PATH": PATH},
    )  # fmt: skip
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        ("vim-embed", [""], list(COMMANDS)),
        ("vim-embed", ["he"], ["health"]),
        ("vim-embed", ["score", "--fl"], ["--float64"]),
        ("vim-embed", ["map", "--method", ""], ["pca", "umap"]),
        ("vim-embed", ["embed", "--pooling", "p"], ["patch-mean"]),
        ("vim-embed-server", ["f"], ["fetch"]),
        ("vim-embed-server", ["serve", "--dtype", "b"], ["bfloat16"]),
        ("vim-embed-server", ["serve", "--model", "vim-small"],
         [name for name in CATALOGUE if name.startswith("vim-small")]),
    ],
)  # fmt: skip
def test_bash_completes(program: str, words: list[str], expected: list[str]) -> None:
    assert complete(program, words) == expected


# The start-up file of each shell, as docs/cli.md has it.
STARTS = {
    "bash": (["bash", "--noprofile", "--rcfile", "rc", "-i"], "rc", ""),
    "zsh": (["zsh", "-i"], ".zshrc", "autoload -U compinit; compinit -u -D\n"),
}


@pytest.mark.parametrize("shell", STARTS)
@pytest.mark.parametrize(
    ("typed", "completed"),
    [("vim-embed neigh", "neighbours"), ("vim-embed score galax", "galaxies.parquet")],
)
def test_tab_in_an_interactive_shell(
    shell: str, typed: str, completed: str, tmp_path: Path
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "galaxies.parquet").touch()
    command, file, before = STARTS[shell]
    (tmp_path / file).write_text(f"{before}{documented_line(shell)}\n")
    pid, terminal = pty.fork()
    if pid == 0:  # the child becomes the shell
        os.chdir(tmp_path)
        os.environ.update(PATH=PATH, PS1="ready> ", TERM="dumb", INPUTRC="/dev/null")
        os.environ.update(ZDOTDIR=str(tmp_path), HOME=str(tmp_path))
        os.execvp(shell, command)
    try:
        os.write(terminal, b"echo sour''ced\n")
        assert "sourced" in read_until(terminal, "sourced")
        os.write(terminal, f"{typed}\t".encode())
        assert completed in read_until(terminal, completed)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def documented_line(shell: str) -> str:
    """The line for a shell's start-up file in docs/cli.md."""
    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    found = re.search(rf"^\| {shell}\b.*\| `(source .*)` \|$", page, re.MULTILINE)
    assert found
    return found[1]


def read_until(terminal: int, text: str, seconds: float = 30) -> str:
    seen = ""
    end = time.monotonic() + seconds
    while text not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


@pytest.mark.parametrize("program", GROUPS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_sound(program: str, shell: str) -> None:
    done = subprocess.run(
        [BIN / program, "completion", shell], capture_output=True, text=True, check=True
    )
    variable = f"_{program}_COMPLETE".replace("-", "_").upper()
    assert f"{variable}={shell}_complete" in done.stdout
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: the script was printed and not parsed")
    check = subprocess.run([shell, "-n"], input=done.stdout, capture_output=True, text=True)
    assert (check.returncode, check.stderr) == (0, "")


def test_an_unknown_shell_is_wrong_usage() -> None:
    assert run(["completion", "tcsh"]) == 2


def test_completion_loads_no_command() -> None:
    script = (
        "import sys; from vim_embed_client.cli import main as cli;"
        "context = cli.click.Context(cli.cli);"
        "print(len(cli.cli.shell_complete(context, '')));"
        "sys.exit(bool({'matplotlib', 'pyarrow', 'vim_embed_client.cli.bench'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(COMMANDS)


def test_names_of_models_are_known_without_torch() -> None:
    script = "import sys, vim_embed.weights.hub; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("program", GROUPS)
def test_every_command_that_prints_results_has_json(program: str) -> None:
    group = GROUPS[program]
    context = click.Context(group)
    commands = {name: group.get_command(context, name) for name in group.list_commands(context)}
    assert len(commands) > 5
    without = {
        name
        for name, command in commands.items()
        if command is not None and not any("--json" in param.opts for param in command.params)
    }
    assert without == {"completion"} | ({"serve"} if program == "vim-embed-server" else set())


def test_fetch_as_json(tmp_path: Path) -> None:
    weights = Path(__file__).parents[2] / "data" / "vim_micro.pth"
    done = server(["fetch", f"mine={weights}", "--json"])
    assert done.returncode == 0, done.stderr
    (fetched,) = json.loads(done.stdout)
    assert fetched["model"] == f"mine={weights}"
    assert fetched["source"] == str(weights)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", fetched["digest"])


def server(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "vim-embed-server", *arguments], capture_output=True, text=True, timeout=120,
        env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["models", "--json"], 0, ""),
        (["fetch", "mine=/nowhere.pth"], 1, "Error: "),
        (["bench", "--bare", "--model", "mine=/nowhere.pth"], 1, "Error: "),
        (["serve", "--port", "-1"], 2, "--port"),
        (["bogus"], 2, "No such command"),
    ],
)
def test_exit_codes_of_the_server(arguments: list[str], code: int, message: str) -> None:
    done = server(arguments, HF_HUB_OFFLINE="1")
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("program", "arguments", "number"),
    [
        ("vim-embed", ["health"], signal.SIGINT),
        ("vim-embed", ["health"], signal.SIGTERM),
        ("vim-embed-server", ["fetch", "vim-tiny"], signal.SIGINT),
    ],
)
def test_an_interrupt_is_exit_code_130(
    program: str, arguments: list[str], number: signal.Signals, tmp_path: Path
) -> None:
    """While it waits for an answer that never comes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(90)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        waits = {"VIM_EMBED_URL": url, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path)}
        process = subprocess.Popen(
            [BIN / program, *arguments], stderr=subprocess.PIPE, text=True,
            env={**os.environ, **waits, "HF_HUB_OFFLINE": "0"},
        )  # fmt: skip
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            connection.recv(1)
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted." in errors
    assert "Traceback" not in errors


def test_the_documented_codes_are_those_in_use() -> None:
    assert set(client_cli.EXIT_CODES) == {0, 1, 2, 3, 4, 5, 130}
    assert set(server_cli.EXIT_CODES) == {0, 1, 2, 130}
