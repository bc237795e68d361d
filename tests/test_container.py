"""The container files without an engine: linted, resolved, and equal to what the code says.

docker/verify.sh builds and runs them (`make container-test`; CI does where there is an engine).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vim_embed.metrics import Metrics
from vim_embed.settings import Settings

ROOT = Path(__file__).parent.parent
COMPOSE = (ROOT / "compose.yaml").read_text()
CPU = ["-f", "docker/compose.cpu.yaml"]


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    assert found, f"{name} is missing: pip install -c constraints.txt -e '.[dev]'"
    return found


def resolve(*arguments: str, **environment: str) -> dict[str, Any]:
    """What compose makes of the files."""
    command = [tool("docker-compose"), "-f", "compose.yaml", *arguments]
    own = ("VIM_EMBED", "HF_", "COMPOSE_", "DOCKER_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    done = subprocess.run(
        [*command, "config", "--format", "json"],
        cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("file", ["Dockerfile", "docker/ray/Dockerfile"])
def test_the_dockerfiles_pass_hadolint(file: str) -> None:
    done = subprocess.run([tool("hadolint"), file], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


VERIFY = ["-f", "docker/verify/compose.yaml"]


@pytest.mark.parametrize("profile", [[], ["--profile", "monitoring"], ["--profile", "*"]])
@pytest.mark.parametrize("files", [[], CPU, [*CPU, *VERIFY]])
@pytest.mark.parametrize("publish", ["127.0.0.1", "0.0.0.0"])
def test_compose_accepts_every_combination(
    files: list[str], profile: list[str], publish: str
) -> None:
    services = resolve(*files, *profile, VIM_EMBED_PUBLISH=publish, PROMETHEUS_PORT="1")["services"]
    assert {service["restart"] for service in services.values() if "restart" in service} == {
        "on-failure:5"
    }
    ports = services["vim-embed"]["ports"]
    assert [port["host_ip"] for port in ports] == [publish]


@pytest.mark.parametrize("extra", [[], CPU])
def test_the_service_is_closed_by_default(extra: list[str]) -> None:
    service = resolve(*extra)["services"]["vim-embed"]
    assert [port["host_ip"] for port in service["ports"]] == ["127.0.0.1"]
    assert service["environment"]["VIM_EMBED_PUBLISHED_HOST"] == "127.0.0.1"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    opened = resolve(*extra, VIM_EMBED_PUBLISH="0.0.0.0")["services"]["vim-embed"]
    assert opened["environment"]["VIM_EMBED_PUBLISHED_HOST"] == "0.0.0.0"


def test_gpu_and_cpu_differ_in_the_target_and_the_reservation() -> None:
    gpu, cpu = (resolve(*extra)["services"]["vim-embed"] for extra in ([], CPU))
    assert gpu["build"]["target"] == "gpu"
    devices = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["driver"] == "nvidia"
    assert cpu["build"]["target"] == "cpu"
    assert "deploy" not in cpu
    assert cpu["environment"]["VIM_EMBED_DTYPE"] == "float32"


def test_monitoring_is_a_profile() -> None:
    assert set(resolve()["services"]) == {"vim-embed"}
    everything = resolve("--profile", "monitoring", VIM_EMBED_API_KEY="a-key")
    assert set(everything["services"]) == {"vim-embed", "prometheus", "grafana"}
    assert 'credentials: "a-key"' in everything["configs"]["prometheus"]["content"]
    for mount in everything["services"]["grafana"]["volumes"]:
        if mount["type"] == "bind":
            assert Path(mount["source"]).is_dir()


def test_settings_of_compose_exist() -> None:
    environment = resolve()["services"]["vim-embed"]["environment"]
    known = {f"VIM_EMBED_{name.upper()}" for name in Settings.model_fields}
    own = {name for name in environment if name.startswith("VIM_EMBED_")}
    assert own <= known
    Settings(**{name.removeprefix("VIM_EMBED_").lower(): environment[name] for name in own})


def test_the_example_of_settings_is_complete() -> None:
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE))
    example = (ROOT / ".env.example").read_text()
    documented = dict(re.findall(r"^#([A-Z_]+)=(.*)$", example, re.MULTILINE))
    assert documented == used


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/vim-embed.json").read_text())
    metrics = Metrics(lambda: 0.0)
    exposed = {
        sample
        for family in metrics.registry.collect()
        for sample in (
            family.name,
            *(f"{family.name}_{end}" for end in ("total", "bucket", "sum", "count")),
        )
    }
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"vim_embed_\w+", target["expr"])
    }
    assert asked
    assert asked <= exposed
