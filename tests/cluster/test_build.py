"""What `vim_embed.cluster:app` makes of settings, and how Ray's faults reach a caller."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from vim_embed.cluster.messages import Facts
from vim_embed.engines.interface import ModelStatus

pytest.importorskip("ray", reason='needs the extra: pip install "vim-embed[ray]"')
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FACTS = Facts(ModelStatus("m", (), "ready"), 1)
ROOT = Path(__file__).parents[2]


def built(**args: Any) -> tuple[Any, dict[str, Any]]:
    """The ingress's deployment and those of the models."""
    from vim_embed.cluster.deployment import app

    ingress = app(args)._bound_deployment
    return ingress, {k: v._bound_deployment for k, v in ingress.init_args[2].items()}


def test_a_deployment_for_each_model_with_its_share_of_a_gpu() -> None:
    _, models = built(models="vim-tiny,mine=org/repo", ray_gpus="0.5", ray_cpus="2")
    assert list(models) == ["vim-tiny", "mine"]
    for deployment in models.values():
        assert deployment.ray_actor_options["num_gpus"] == 0.5
        assert deployment.ray_actor_options["num_cpus"] == 2
        assert deployment.num_replicas == 1
    settings = models["mine"].init_args[0]
    assert (settings.models, settings.device) == (("mine=org/repo",), "auto")


def test_without_gpus_models_compute_on_the_cpu() -> None:
    _, models = built()
    assert models["vim-tiny"].init_args[0].device == "cpu"


def test_more_replicas_at_most_than_at_least_scale_with_the_queue() -> None:
    _, models = built(ray_max_replicas="7", ray_target_requests="3")
    scaling = models["vim-tiny"]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 7)
    assert scaling.target_ongoing_requests == 3


def test_settings_come_from_the_environment_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIM_EMBED_MODELS", "vim-small,vim-base")
    monkeypatch.setenv("VIM_EMBED_RAY_GPUS", "1")
    monkeypatch.setenv("VIM_EMBED_DRAIN_TIMEOUT", "7")
    ingress, models = built()
    assert list(models) == ["vim-small", "vim-base"]
    assert models["vim-base"].ray_actor_options["num_gpus"] == 1
    assert ingress._deployment_config.graceful_shutdown_timeout_s == 7


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"models": "resnet"}, "vim-tiny"),
        ({"models": "a=x/y,a=x/z"}, "given twice"),
        ({"models": "ingress=x/y"}, "another name"),
        ({"device": "cpu", "ray_gpus": 1}, "VIM_EMBED_RAY_GPUS=0"),
        ({"device": "cuda"}, "VIM_EMBED_RAY_GPUS"),
        ({"device": "cuda:1", "ray_gpus": 1}, "VIM_EMBED_DEVICE=auto"),
        ({"device": "all", "ray_gpus": 1}, "VIM_EMBED_DEVICE=auto"),
        ({"published_host": "0.0.0.0"}, "VIM_EMBED_API_KEYS"),
        ({"model_control": True}, "deploy again"),
        ({"ray_min_replicas": 3}, "VIM_EMBED_RAY_MAX_REPLICAS"),
        ({"ray_gpu": 1}, "gpu"),
        ({"modells": "vim-tiny"}, "modells"),
    ],
)
def test_what_cannot_work_says_so_before_anything_is_deployed(
    args: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        built(**args)


@pytest.mark.parametrize("source", ["serve.yaml", "rayservice.yaml"])
def test_sample_files_are_what_serve_takes(source: str, tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    documents = list(yaml.safe_load_all((ROOT / "docker" / "ray" / source).read_text()))
    config = documents[-1]
    if config.get("kind") == "RayService":
        config = yaml.safe_load(config["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "vim_embed.cluster:app"
    args = dict(application.args)
    if "api_keys_file" in args:
        (tmp_path / "keys").write_text("sha256:" + 64 * "0")
        args["api_keys_file"] = str(tmp_path / "keys")
    _, models = built(**args)
    assert {d.name for d in application.deployments} <= {*models, "ingress"}


def test_ray_s_faults_become_the_service_s_errors() -> None:
    from ray.exceptions import ActorDiedError, NodeDiedError, WorkerCrashedError
    from ray.serve._private.common import DeploymentID
    from ray.serve.exceptions import (
        BackPressureError,
        DeploymentUnavailableError,
        ReplicaUnavailableError,
    )

    from vim_embed.cluster.ingress import translated

    full = BackPressureError(num_queued_requests=3, max_queued_requests=3)
    gone = DeploymentUnavailableError(DeploymentID(name="m", app_name="a"))
    lost = [
        ActorDiedError(),
        NodeDiedError("x"),
        WorkerCrashedError(),
        ReplicaUnavailableError("r"),
    ]
    assert (translated(full, "m").status, translated(full, "m").code) == (429, "queue_full")
    assert translated(full, "m").retry_after == 1
    assert (translated(gone, "m").status, translated(gone, "m").code) == (503, "not_ready")
    for error in lost:
        assert (translated(error, "m").status, translated(error, "m").code) == (
            503,
            "worker_failed",
        )
        assert translated(error, "m").retryable


class Handle:
    """A model's handle that fails as told."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.facts = self

    async def remote(self) -> object:
        if self.error is not None:
            raise self.error
        return FACTS


async def test_a_model_that_is_not_heard_of_counts_as_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray.exceptions import ActorDiedError

    from vim_embed.cluster import ingress as cluster_front

    monkeypatch.setattr(cluster_front, "_PERIOD", 0.01)
    monkeypatch.setattr(cluster_front, "_SILENCE", 0.2)
    handle = Handle(None)
    models = cluster_front.RemoteModels({"m": ("alias",)}, {"m": handle})
    assert models.status()["m"].state == "loading"
    watch = asyncio.create_task(models.watch())
    await asyncio.sleep(0.1)
    assert models.status()["m"].state == "ready"
    handle.error = ActorDiedError()
    await asyncio.sleep(0.4)
    assert models.status()["m"].state == "failed"
    assert "no replica has answered" in (models.status()["m"].reason or "")
    models.heard("m")  # as when rows of it come back
    assert models.status()["m"].state == "ready"
    watch.cancel()


async def test_a_model_that_cannot_be_deployed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private.common import DeploymentID
    from ray.serve.exceptions import DeploymentUnavailableError

    from vim_embed.cluster import ingress as cluster_front

    monkeypatch.setattr(cluster_front, "_PERIOD", 0.01)
    gone = DeploymentUnavailableError(DeploymentID(name="m", app_name="a"))
    models = cluster_front.RemoteModels({"m": ()}, {"m": Handle(gone)})
    watch = asyncio.create_task(models.watch())
    await asyncio.sleep(0.1)
    assert models.status()["m"].state == "failed"
    assert "failed to deploy" in (models.status()["m"].reason or "")
    watch.cancel()


def test_a_setting_of_the_cluster_is_in_its_page() -> None:
    from vim_embed.cluster.settings import ClusterSettings

    page = (ROOT / "docs" / "ray.md").read_text()
    for name, setting in ClusterSettings.model_fields.items():
        row = f"| `VIM_EMBED_RAY_{name.upper()}` | `{setting.default:g}` | {setting.description} |"
        assert row in page


class Published:
    """Stands in for Ray's metrics, which only a replica of Serve has."""

    def publish(self) -> None:
        return None


async def test_a_replica_that_lost_one_of_its_devices_is_unhealthy() -> None:
    from vim_embed.cluster.replica import Replica
    from vim_embed.engines.arithmetic import ArithmeticEngine
    from vim_embed.settings import Settings

    engines = [ArithmeticEngine(device="cuda:0"), ArithmeticEngine(device="cuda:1")]
    replica = Replica(Settings(models=("arithmetic=unused",)), lambda _: engines)
    replica._metrics = Published()  # type: ignore[assignment]
    await replica.check_health()
    replica._service.queue.workers[1].lose("fell off the bus")  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="cuda:1 is lost"):
        await replica.check_health()
    replica.__del__()
