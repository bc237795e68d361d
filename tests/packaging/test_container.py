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

from vim_embed import __version__
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.auth import Keys, require_keys
from vim_embed.server.server import reachable_as
from vim_embed.serving.service import build_service
from vim_embed.settings import Settings
from vim_embed.types.devices import resolve_devices

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "compose.yaml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
CONTAINERS = (ROOT / "docs/containers.md").read_text()
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
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


DOCKERFILES = [
    "Dockerfile",
    "docker/ray/Dockerfile",
    "docker/verify/prometheus.Dockerfile",
    "docker/verify/baked.Dockerfile",
]


@pytest.mark.parametrize("file", DOCKERFILES)
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


def test_a_proxy_s_name_is_published_beside_the_address() -> None:
    """Neither hides the other: with any of them beyond this machine the service wants keys."""
    name = {"VIM_EMBED_PUBLISHED_HOST": "gpu-box.example.org"}
    for publish in ("127.0.0.1", "0.0.0.0"):
        service = resolve(VIM_EMBED_PUBLISH=publish, **name)["services"]["vim-embed"]
        published = service["environment"]["VIM_EMBED_PUBLISHED_HOST"]
        assert published == f"{publish},gpu-box.example.org"
        with pytest.raises(ValueError, match="API key"):
            require_keys(Keys([], None), *reachable_as(Settings(published_host=published)))
    hidden = resolve(VIM_EMBED_PUBLISH="0.0.0.0", VIM_EMBED_PUBLISHED_HOST="127.0.0.1")
    published = hidden["services"]["vim-embed"]["environment"]["VIM_EMBED_PUBLISHED_HOST"]
    with pytest.raises(ValueError, match=r"0\.0\.0\.0"):
        require_keys(Keys([], None), *reachable_as(Settings(published_host=published)))


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


# In a container these are the image's business: what is published where, and what is mounted.
NOT_IN_COMPOSE = {"host", "port", "unix_socket", "tls_cert", "tls_key", "tls_key_password_file"}


def test_every_setting_passes_through_compose() -> None:
    environment = resolve()["services"]["vim-embed"]["environment"]
    own = {name for name in environment if name.startswith("VIM_EMBED_")}
    expected = {f"VIM_EMBED_{name.upper()}" for name in set(Settings.model_fields) - NOT_IN_COMPOSE}
    assert own == expected
    fixed = {name: environment[name] for name in own if environment[name] is not None}
    Settings(**{name.removeprefix("VIM_EMBED_").lower(): value for name, value in fixed.items()})
    given = resolve(VIM_EMBED_QUEUE_ROWS="77")["services"]["vim-embed"]["environment"]
    assert given["VIM_EMBED_QUEUE_ROWS"] == "77"


def example() -> dict[str, str]:
    return dict(re.findall(r"^#([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))


def test_the_example_has_every_default_of_compose() -> None:
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE))
    assert used.items() <= example().items()


def test_the_other_lines_of_the_example_are_passed_on_and_state_true_defaults() -> None:
    """A line is a setting's default, a build argument's default, or empty."""
    service = resolve(**example())["services"]["vim-embed"]
    passed_on = {**service["environment"], **service["build"]["args"]}
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE))
    settings = Settings()
    arguments = dict(
        re.findall(r"^ARG (\w+)=\"?([^\"\n]*)", (ROOT / "Dockerfile").read_text(), re.M)
    )
    for name, value in example().items():
        if name in used:
            continue
        assert passed_on[name] == value
        field = name.removeprefix("VIM_EMBED_").lower()
        if name in arguments:
            assert value == arguments[name]
        elif field in Settings.model_fields and "KEYS" not in name:
            assert value == str(getattr(settings, field)).removesuffix(".0").lower()
        else:
            assert value == ""


def test_gpus_and_grace_are_lines_of_the_example_too() -> None:
    service = resolve(VIM_EMBED_GPUS="all", VIM_EMBED_STOP_GRACE="5m")["services"]["vim-embed"]
    (devices,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert devices["count"] == -1
    assert service["stop_grace_period"] == "5m0s"


def test_the_image_is_labelled_with_the_version() -> None:
    versions = re.findall(r"^ARG VERSION=(.*)$", DOCKERFILE, re.MULTILINE)
    assert versions == [__version__]


def test_what_a_gpu_image_without_a_gpu_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """docker/verify/gpu.sh waits for these words, and docs/containers.md explains them."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    (image,) = re.findall(r"^FROM run AS gpu\n(?:.*\n)*?.*VIM_EMBED_DEVICE=(\w+)", DOCKERFILE, re.M)
    with pytest.raises(ValueError, match="docker run --gpus all") as error:
        resolve_devices(image)
    (expected,) = re.findall(r'said == \*"(.*)"\*', (ROOT / "docker/verify/gpu.sh").read_text())
    (explained,) = re.findall(r"^\| no GPU, but the GPU image \| 2 \| `(.*) …`", CONTAINERS, re.M)
    assert expected in str(error.value)
    assert str(error.value).startswith(explained)


def test_grafana_is_provisioned_with_what_the_dashboard_asks() -> None:
    read = (ROOT / "docker/grafana/provisioning/datasources/prometheus.yaml").read_text()
    (uid,) = re.findall(r"uid: (\S+)", read)
    (url,) = re.findall(r"url: (\S+)", read)
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/vim-embed.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {uid}
    services = resolve("--profile", "monitoring")["services"]
    assert url == "http://prometheus:9090"
    assert "prometheus" in services
    provider = (ROOT / "docker/grafana/provisioning/dashboards/vim-embed.yaml").read_text()
    (path,) = re.findall(r"path: (\S+)", provider)
    assert path in {mount["target"] for mount in services["grafana"]["volumes"]}


def mirrored(tmp_path: Path, *command: str, secrets: tuple[str, ...] = ()) -> str:
    """What docker/mirrored runs, with these secrets there."""
    script = (ROOT / "docker/mirrored").read_text().replace("/run/secrets", str(tmp_path))
    for name in secrets:
        (tmp_path / name).write_text("x")
    for name in ("apt-get", "pip"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$PIP_CONFIG_FILE|$PIP_CERT|$*"\n')
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", script, "mirrored", *command],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip


def test_build_secrets_name_the_package_indexes(tmp_path: Path) -> None:
    assert mirrored(tmp_path, "pip", "install", "x") == "||install x"
    assert mirrored(tmp_path, "apt-get", "update") == "||update"
    everything = ("pip_conf", "ca_bundle", "apt_sources")
    at = {name: tmp_path / name for name in everything}
    said = mirrored(tmp_path, "pip", "install", "x", secrets=everything)
    assert said == f"{at['pip_conf']}|{at['ca_bundle']}|install x"
    said = mirrored(tmp_path, "apt-get", "update").split("|")[-1]
    assert f"Dir::Etc::sourcelist={at['apt_sources']} " in said
    assert said.endswith(f"Acquire::https::CAInfo={at['ca_bundle']} update")


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/vim-embed.json").read_text())
    metrics = build_service(Settings(), ArithmeticEngine()).metrics
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


def test_the_public_kernels_are_compiled_for_the_architectures_asked_for(tmp_path: Path) -> None:
    """docker/nvcc-archs replaces what setup.py of mamba-ssm and causal-conv1d names."""
    (tmp_path / "ccache").write_text('#!/bin/sh\necho "$*"\n')
    (tmp_path / "ccache").chmod(0o755)
    named = ["-gencode", "arch=compute_80,code=sm_80", "-gencode=arch=compute_120,code=sm_120"]
    done = subprocess.run(
        [ROOT / "docker/nvcc-archs", "-O3", *named, "-c", "scan.cu"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "NVCC_ARCHS": "7.5;9.0+PTX"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split()[1:] == [
        *("-O3", "-c", "scan.cu"),
        *("-gencode", "arch=compute_75,code=sm_75"),
        *("-gencode", "arch=compute_90,code=sm_90"),
        *("-gencode", "arch=compute_90,code=compute_90"),
    ]
