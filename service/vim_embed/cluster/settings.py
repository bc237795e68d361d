"""Settings that only a Ray cluster has, beside those of settings.py."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class ClusterSettings(BaseSettings):
    """How models are spread over a cluster. Each field is `VIM_EMBED_RAY_<NAME>`.

    A `serve` config file can override them for a single model, under `deployments`.
    """

    model_config = SettingsConfigDict(env_prefix="VIM_EMBED_RAY_", extra="forbid", frozen=True)

    gpus: float = Field(
        0.0, ge=0, description="GPUs of a replica; a fraction shares one; 0 computes on the CPU"
    )
    cpus: float = Field(1.0, ge=0, description="CPU cores that Ray sets aside for a replica")
    min_replicas: int = Field(1, ge=1, description="replicas of each model at least")
    max_replicas: int = Field(
        1, ge=1, description="replicas of each model at most; more than min_replicas: autoscaling"
    )
    target_requests: float = Field(
        4.0, gt=0, description="requests in flight at a replica that autoscaling aims at"
    )
    upscale_delay: float = Field(
        30.0, ge=0, description="seconds of more requests than that before a replica is added"
    )
    downscale_delay: float = Field(
        600.0, ge=0, description="seconds of fewer before one is taken away"
    )
    max_requests: int = Field(
        256, ge=1, description="requests in flight at a replica before others wait before it"
    )
    waiting_requests: int = Field(
        256, ge=1, description="requests that may wait for a replica before 429"
    )
    ingress_replicas: int = Field(1, ge=1, description="replicas of what takes HTTP requests")
    ingress_cpus: float = Field(1.0, ge=0, description="CPU cores set aside for each of those")
    health_period: float = Field(
        10.0, gt=0, description="seconds between two health checks, each also publishing metrics"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"VIM_EMBED_RAY_MIN_REPLICAS={self.min_replicas} is over "
                f"VIM_EMBED_RAY_MAX_REPLICAS={self.max_replicas}: raise the latter"
            )
        return self
