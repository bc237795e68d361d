"""Scripts, units and alerts of docker/: accepted by the tools that read them, as far as they are
here, and in step with the code.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.serving.service import build_service
from vim_embed.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
SCRIPTS = sorted(
    path
    for path in DOCKER.rglob("*")
    if path.is_file() and path.read_bytes().startswith(b"#!/bin/bash")
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_well_formed(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install -e '.[dev]'")
    command = [shellcheck, "--severity=warning", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    unit = (DOCKER / "systemd/vim-embed.service").read_text()
    assert "/opt/vim-embed/bin/vim-embed-server serve" in unit
    copy = tmp_path / "vim-embed.service"
    copy.write_text(unit.replace("/opt/vim-embed/bin/vim-embed-server", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False
    )
    about_it = [line for line in done.stderr.splitlines() if "vim-embed" in line]
    assert (done.returncode, about_it) == (0, [])


def test_the_apptainer_image_has_what_the_dockerfile_copies() -> None:
    definition = (DOCKER / "apptainer/vim-embed.def").read_text()
    files = re.findall(r"^    (\S+) (/\S+)$", definition.split("%post")[0], re.MULTILINE)
    assert all((ROOT / source).exists() for source, _ in files)
    dockerfile = (ROOT / "Dockerfile").read_text()
    for source, _ in files:
        assert source in dockerfile
    (uv,) = set(re.findall(r"UV_VERSION=([\d.]+)", definition + dockerfile))
    assert uv
    (base,) = re.findall(r"^From: (.*)$", definition, re.MULTILINE)
    assert f"PYTHON_IMAGE={base}\n" in dockerfile


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DOCKER / "prometheus/alerts.yaml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def documented_rules() -> list[dict[str, Any]]:
    """The rules that docs/operations.md shows, for a reader to change."""
    text = (ROOT / "docs/operations.md").read_text()
    blocks = re.findall(r"^```yaml\n(- alert: .*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [rule for block in blocks for rule in yaml.safe_load(block)]


def test_alerts_ask_for_metrics_that_exist() -> None:
    service = build_service(Settings(), ArithmeticEngine())
    names = {family.name for family in service.metrics.registry.collect()}
    assert documented_rules()
    for rule in (*rules(), *documented_rules()):
        promql_parser.parse(rule["expr"])
        for asked in re.findall(r"vim_embed_\w+", rule["expr"]):
            assert re.sub("_(total|bucket)$", "", asked) in names, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
    assert all(rule["annotations"]["summary"] for rule in rules())


def test_the_documentation_says_what_to_do_about_each_alert() -> None:
    text = (ROOT / "docs/operations.md").read_text().split("\n## Alerts\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(VimEmbed\w+)` \|", text, re.MULTILINE)
    assert listed == [rule["alert"] for rule in rules()]


def test_prometheus_loads_the_alerts() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text().replace("!reset", ""))
    prometheus = compose["services"]["prometheus"]
    content = yaml.safe_load(compose["configs"]["prometheus"]["content"])
    (path,) = content["rule_files"]
    mounts = {m["target"]: m["source"] for m in prometheus["configs"]}
    assert compose["configs"][mounts[path]]["file"] == "docker/prometheus/alerts.yaml"
