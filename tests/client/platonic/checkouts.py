"""Source trees of the host in both its layouts, and the command on them."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from vim_embed_client.cli.main import cli

INIT = """\
from platonic.registry import get_adapter, register_adapter, list_adapters

from platonic import hf
from platonic import astropt

__all__ = ["get_adapter"]
"""
EXPERIMENTS = '''\
def run_experiment(model_alias, mode):
    """Grüße, \x0c as a form feed is no line end."""
    model_map = {
        "vit": (
            ["base"],
            ["google/vit-base"],
        ),
        "dino": (["small"], [f"facebook/{s}" for s in ["small"]]),  # a comment
    }
    return model_map[model_alias]
'''
LAYERWISE = 'MODEL_MAP = {\n    "vit": (["base"], ["google/vit-base"]),\n}\n'
PHYSICS = LAYERWISE.replace("MODEL_MAP", "PHYSICS_MODEL_MAP")
BENCHMARK = """\
def run_benchmark(config):
    model_map = {
        "vit": {
            "base": "google/vit-base",
        },
    }
    return model_map
"""
RELEASE = {"models/__init__.py": INIT, "experiments.py": EXPERIMENTS}
HEAD = RELEASE | {
    "experiments_layerwise.py": LAYERWISE,
    "physics_experiment.py": PHYSICS,
    "benchmark.py": BENCHMARK,
}


def checkout(folder: Path, files: dict[str, str], *, line_end: str = "\n") -> Path:
    """A source tree of the host; gives the folder of its package."""
    package = folder / "src" / "pu"
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.replace("\n", line_end).encode())
    return package


def contents(package: Path) -> dict[str, bytes]:
    files = (path for path in package.rglob("*") if path.is_file())
    return {path.relative_to(package).as_posix(): path.read_bytes() for path in files}


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["attach", *map(str, arguments)], catch_exceptions=False)
