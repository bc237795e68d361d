"""The names that `vim-embed attach` gives the host: twins of its models, and foreign ones."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from vim_embed_client.cli.main import run
from vim_embed_client.errors import ConfigurationError
from vim_embed_client.platonic import ALIASES
from vim_embed_client.platonic.source_edits import with_tables

from .checkouts import EXPERIMENTS, HEAD, INIT, RELEASE, checkout, contents, invoke

pytestmark = pytest.mark.usefixtures("asked_once")


def aliases_of(package: Path) -> dict[str, Any]:
    """What run_experiment of an attached package maps each alias to."""
    scope: dict[str, Any] = {}
    source = (package / "experiments.py").read_text()
    exec(source.replace("return model_map[model_alias]", "return model_map"), scope)
    table: dict[str, Any] = scope["run_experiment"]("", "")
    return table


def registered(package: Path) -> Any:
    """What the attached models/__init__.py gives register_aliases beside the host's function."""
    calls = [
        node
        for node in ast.walk(ast.parse((package / "models" / "__init__.py").read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "register_aliases"
    ]
    return ast.literal_eval(calls[0].args[1]) if calls[0].args[1:] else {}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_twins_have_the_host_s_own_sizes_and_names(tmp_path: Path, line_end: str) -> None:
    table = EXPERIMENTS.replace('["small"]', '["small", "b-plus"]')
    package = checkout(tmp_path, HEAD | {"experiments.py": table}, line_end=line_end)
    before = contents(package)
    assert invoke(tmp_path, "--models", "dino,vit").exit_code == 0
    attached = contents(package)
    assert all(text.count(b"\n") == text.count(line_end.encode()) for text in attached.values())
    dino = {"small": "facebook/small", "b-plus": "facebook/b-plus"}
    assert registered(package) == {"vit": {"base": "google/vit-base"}, "dino": dino}
    found = aliases_of(package)
    assert found["dino-remote"] == found["dino"] == (list(dino), list(dino.values()))
    assert found["dino-remote-b-plus"] == (["b-plus"], ["facebook/b-plus"])
    assert found["vit-remote"] == found["vit-remote-base"] == found["vit"]
    assert found["vim-remote-tiny"] == (["tiny"], ["hustvl/Vim-tiny-midclstok"])
    scope: dict[str, Any] = {}
    exec(attached["benchmark.py"].decode(), scope)
    benchmark = scope["run_benchmark"](None)
    assert benchmark["vit-remote-base"] == benchmark["vit-remote"] == {"base": "google/vit-base"}
    assert "dino-remote" not in benchmark  # a table without the model gets no twin of it
    assert invoke(tmp_path, "--undo").exit_code == 0
    assert contents(package) == before


def test_twins_stay_until_others_are_asked_for(tmp_path: Path) -> None:
    package = checkout(tmp_path, HEAD)
    assert invoke(tmp_path, "--models", "dino").exit_code == 0
    attached = contents(package)
    for flags in ([], ["--check"], ["--models", "dino"], ["--models", "dino", "--check"]):
        assert invoke(tmp_path, *flags).exit_code == 0
        assert contents(package) == attached
    assert "vim-remote-proxy, dino-remote" in invoke(tmp_path, "--check").output
    assert json.loads(invoke(tmp_path, "--json").output)["aliases"] == [*ALIASES, "dino-remote"]
    assert invoke(tmp_path, "--models", "vit", "--check").exit_code == 1
    assert invoke(tmp_path, "--models", "all").exit_code == 0
    assert registered(package).keys() == {"vit", "dino"}
    assert invoke(tmp_path, "--models", "none").exit_code == 0
    assert registered(package) == {}
    assert aliases_of(package).keys().isdisjoint({"dino-remote", "vit-remote"})


def test_a_model_without_a_twin_is_refused(tmp_path: Path) -> None:
    package = checkout(tmp_path, HEAD)
    before = contents(package)
    with pytest.raises(
        ConfigurationError, match=r"no remote twin of astropt, clip: .* has dino, v"
    ):
        invoke(tmp_path, "--models", "clip,astropt")
    assert contents(package) == before
    assert run(["attach", str(tmp_path), "--models", ","]) == 2
    assert run(["attach", str(tmp_path), "--models", "dino", "--undo"]) == 2


@pytest.mark.parametrize(
    "entry",
    ["(sizes(), names())", '(["small", "base"], ["facebook/small"])', "Entry()", '("a", __file__)'],
)
def test_an_entry_that_cannot_be_read_has_no_twin_and_harms_no_other(
    tmp_path: Path, entry: str
) -> None:
    own = '(["small"], [f"facebook/{s}" for s in ["small"]])'
    package = checkout(tmp_path, HEAD | {"experiments.py": EXPERIMENTS.replace(own, entry)})
    with pytest.raises(ConfigurationError, match="no remote twin of dino"):
        invoke(tmp_path, "--models", "dino")
    assert invoke(tmp_path, "--models", "all").exit_code == 0
    assert registered(package).keys() == {"vit"}


def test_a_foreign_twin_is_refused_by_name(tmp_path: Path) -> None:
    foreign = "from .registry import register_adapter\nregister_adapter('dino-remote', object)\n"
    package = checkout(tmp_path, HEAD | {"models/own.py": foreign})
    assert invoke(tmp_path).exit_code == 0
    attached = contents(package)
    with pytest.raises(ConfigurationError, match="line 2 registers an adapter 'dino-remote' of"):
        invoke(tmp_path, "--models", "dino")
    assert contents(package) == attached


OWN = """\
        "vim": (
            ["s"],  # the fork's own
            ["fork/vim"],
        ),
"""
FORK = RELEASE | {
    "experiments.py": EXPERIMENTS.replace("    }\n    return", OWN + "    }\n    return")
}
FORK_ADAPTER = RELEASE | {
    "models/own.py": "from .registry import register_adapter\nregister_adapter('vim', object)\n"
}
FORK_AT_HOME = RELEASE | {"models/__init__.py": INIT + "register_adapter('vim', object)\n"}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        (FORK, r"experiments.py: line 9 has a model 'vim' that is not vim-embed's"),
        (FORK_ADAPTER, r"models/own.py: line 2 registers an adapter 'vim' of its own"),
        (FORK_AT_HOME, r"models/__init__.py: line 7 registers an adapter 'vim' of its own"),
    ],
)
def test_a_foreign_alias_is_refused_by_name_and_only_put_aside_when_asked(
    tmp_path: Path, files: dict[str, str], message: str, line_end: str
) -> None:
    package = checkout(tmp_path, files, line_end=line_end)
    before = contents(package)
    for flags in ([], ["--check"], ["--diff"]):
        with pytest.raises(ConfigurationError, match=message) as caught:
            invoke(tmp_path, *flags)
        assert "--replace" in str(caught.value)
    assert invoke(tmp_path, "--undo").exit_code == 0
    assert contents(package) == before

    assert invoke(tmp_path, "--replace").exit_code == 0
    attached = contents(package)
    scope: dict[str, Any] = {}
    exec(attached["experiments.py"].decode(), scope)
    assert scope["run_experiment"]("vim", "jwst") == (
        ["tiny", "small", "base"],
        list(ALIASES["vim"]),
    )
    init = attached["models/__init__.py"].decode()
    assert init.rindex("register_aliases(register_adapter)") > init.find("register_adapter('vim'")
    invoke(tmp_path, "--replace")
    assert contents(package) == attached
    assert invoke(tmp_path, "--undo").exit_code == 0
    assert contents(package) == before


def test_a_replaced_alias_stays_replaced_without_being_asked_again(tmp_path: Path) -> None:
    package = checkout(tmp_path, FORK)
    invoke(tmp_path, "--replace")
    attached = contents(package)
    assert b'# vim-embed replaced:             ["fork/vim"],\n' in attached["experiments.py"]
    assert invoke(tmp_path).exit_code == 0
    assert invoke(tmp_path, "--check").exit_code == 0
    assert contents(package) == attached


def test_what_upstream_has_of_ours_by_itself_is_left_alone(tmp_path: Path) -> None:
    ours = with_tables(EXPERIMENTS).splitlines(keepends=True)
    merged = "".join(line for line in ours if "# vim-embed: " not in line)
    init = INIT + "from vim_embed_client.platonic import register_aliases\n"
    init += "register_aliases(register_adapter)\n"
    package = checkout(tmp_path, {"models/__init__.py": init, "experiments.py": merged})
    before = contents(package)
    assert "as before" in invoke(tmp_path).output
    assert invoke(tmp_path, "--check").exit_code == 0
    assert invoke(tmp_path, "--undo").exit_code == 0
    assert contents(package) == before
