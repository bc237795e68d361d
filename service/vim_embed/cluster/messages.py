"""What ingress and replicas say to each other: plain data that Ray pickles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vim_embed.engines.interface import ModelStatus
from vim_embed.types.model_info import EmbedOptions


@dataclass(frozen=True)
class Call:
    """One request's rows travel beside this. seconds: until the answer is of no use."""

    options: EmbedOptions
    seconds: float | None
    client: str
    request_id: str


@dataclass(frozen=True)
class Facts:
    """A loaded model. layers: by granularity, their names; batch_rows: at the native size."""

    status: ModelStatus
    batch_rows: int
    layers: Mapping[str, list[str]] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
