"""The wheels of dist/ in clean virtual environments, without a compiler.

    python scripts/wheel_test.py [PIP ARGUMENTS]

The platform wheel has to run vim-tiny on the fast kernels that came with it, the pure wheel and the
sdist on plain torch, and say why. The client alone has to be importable without the service. pip
has to prefer the platform wheel where both are offered.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@dataclass(frozen=True)
class Environment:
    """A virtual environment whose PATH has no compiler."""

    folder: Path

    def run(self, *command: str) -> str:
        """What a command of the environment prints. Raises CalledProcessError."""
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CXX")}
        environment |= {
            "PATH": str(self.folder / "bin"),
            "VIM_EMBED_CACHE_DIR": str(self.folder / "no-kernels-yet"),
        }
        done = subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            env=environment, cwd=self.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def install(self, *arguments: str) -> None:
        self.run(
            "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            f"--constraint={ROOT / 'constraints.txt'}", *arguments,
        )  # fmt: skip


def client_alone(wheel: Path, scratch: Path, pip: list[str]) -> None:
    """The client of the pure wheel: no torch, imported at once."""
    environment = made(scratch / "client")
    environment.install(*pip, str(wheel))
    environment.run("vim-embed", "--version")
    begin = time.monotonic()
    environment.run(
        "python", "-c", "import sys, vim_embed_client; assert 'torch' not in sys.modules"
    )
    seconds = time.monotonic() - begin
    print(f"client alone: imported in {seconds:.2f} s")


def backend(environment: Environment, wheel: str, pip: list[str]) -> str:
    """The kernels that vim-tiny runs on, after this distribution is installed, and why."""
    environment.install("--force-reinstall", "--no-deps", *pip, wheel)
    said = environment.run(
        "vim-embed-server", "check", "--model", "vim-tiny", "--random-weights", "--device", "cpu",
        "--json",
    )  # fmt: skip
    (status,) = json.loads(said)
    info = status["info"]
    return f"{info['backend']}: {info['backend_reason']}"


def made(folder: Path) -> Environment:
    venv.create(folder, with_pip=True)
    return Environment(folder)


def main() -> None:
    pip = sys.argv[1:]
    (pure,) = DIST.glob("*-none-any.whl")
    (platform,) = set(DIST.glob("*.whl")) - {pure}
    (sdist,) = DIST.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        client_alone(pure, scratch, pip)
        service = made(scratch / "service")
        pins = (ROOT / "constraints.txt").read_text().splitlines()
        torch = next(pin for pin in pins if pin.startswith("torch=="))
        service.install(*pip, torch)
        service.install(*pip, f"{platform}[service,demo]")
        for distribution, expected in ((platform, "cpu"), (pure, "torch"), (sdist, "torch")):
            found = backend(service, str(distribution), pip)
            print(f"{distribution.name}: {found}")
            assert found.startswith(f"{expected}: "), found
            assert found.endswith(", prebuilt") == (distribution == platform), found
        offered = [f"--find-links={DIST}", *pip]
        found = backend(service, f"vim-embed=={VERSION}", offered)
        assert found.endswith(", prebuilt"), f"pip did not take the platform wheel: {found}"
        said = service.run(
            "vim-embed",
            "demo",
            "--model",
            "vim-micro",
            "--count",
            "16",
            "--json",
            "--device",
            "cpu",
        )
        demo = json.loads(said)
        provenance, seconds = demo["provenance"], demo["seconds"]
        print(f"vim-embed demo: {demo['sources']} sources on {provenance['backend']}, {seconds} s")
        assert provenance["backend"] == "cpu", provenance


if __name__ == "__main__":
    main()
