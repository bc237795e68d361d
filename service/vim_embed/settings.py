"""The one table of settings: environment `VIM_EMBED_*`, mirrored by command-line flags (cli.py)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: object) -> object:
    """Seconds of `90`, `90s`, `30m`, `2h` or `1d`. Raises ValueError."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", value.strip())
    if found is None:
        raise ValueError(f"{value!r} is no time: use seconds, or a number with s, m, h or d (30m)")
    return float(found[1]) * _UNITS[found[2]]


Duration = Annotated[float, BeforeValidator(_seconds)]


class Settings(BaseSettings):
    """Settings of `vim-embed-server serve`. Each field is `VIM_EMBED_<NAME>` and `--<name>`."""

    model_config = SettingsConfigDict(env_prefix="VIM_EMBED_", extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    published_host: str = Field(
        "",
        description="address or name under which others reach it, if not `host` (a container's, a "
        "proxy's); several with commas",
    )
    allowed_hosts: str = Field(
        "",
        description="further names that Host may have, with commas (`*.example.org`; `*`: any); "
        "without keys the others are refused",
    )
    cors_origins: str = Field(
        "",
        description="origins of web pages that may use the service from a browser, with commas "
        "(`https://name:port`; `*`: any)",
    )
    trusted_proxies: str = Field(
        "",
        description="proxies whose X-Forwarded-For counts: addresses or networks with commas, "
        "`unix` for the Unix socket",
    )
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="accepted API keys, plain or sha256:HEX, with commas; needed beyond loopback",
    )
    api_keys_file: str = Field(
        "", description="file of accepted API keys, one a line; read again when it changes"
    )
    tls_cert: str = Field("", description="file of the certificate chain (PEM), for HTTPS")
    tls_key: str = Field("", description="file of the certificate's private key (PEM)")
    tls_key_password_file: str = Field(
        "", description="file of the private key's password, if it is encrypted"
    )
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    unix_socket: str = Field("", description="path of a Unix socket to listen on too")
    http_processes: int = Field(
        1,
        ge=1,
        le=64,
        description="processes that speak HTTP; from 2 on they hand bodies to the model's process "
        "through shared memory",
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("vim-tiny",),
        description="models to load: NAME, NAME=PATH or NAME=org/repo[@revision][:file]; "
        "NAME=FAMILY:PATH where the file does not tell its family, NAME=hf:org/repo for encoders "
        "of transformers: see docs/models.md "
        "(commas in the environment; the flag is --model and repeats)",
    )
    device: str = Field(
        "auto",
        description="auto, cpu, cuda, cuda:N or N, several with commas, or all (CUDA devices)",
    )
    dtype: Literal["float32", "float32-ieee", "float16", "bfloat16", "auto"] = Field(
        "float32",
        description="dtype of the computation; auto: the fastest whose certificate keeps what "
        "`keep_neighbours` asks, else float32",
    )
    certificates: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="certificates of precision that `vim-embed-server certify` wrote (.json), "
        "each for a model that is served (commas in the environment; the flag is --certificate "
        "and repeats)",
    )
    keep_neighbours: float = Field(
        0.99,
        gt=0,
        le=1,
        description="with `--dtype auto`: share of nearest neighbours that a dtype must keep, at "
        "the lower end of its certificate's interval",
    )
    backend: str = Field("auto", description="Vim's kernels: auto, or a name that `models` shows")
    random_weights: bool = Field(
        False, description="fill the models with seeded random weights (demos and tests only)"
    )
    exact: bool = Field(
        False, description="make every request exact: the same bytes whatever shares the batch"
    )
    exact_rows: int = Field(
        0,
        ge=0,
        le=1024,
        description="rows of every batch in exact mode at the native image size; 0: 1 on CPU, "
        "32 on CUDA. Equal numbers are needed for equal bytes",
    )
    batch_rows: int = Field(
        0,
        ge=0,
        description="rows of one batch at the native image size; 0: 8 on CPU; on CUDA 64 of a "
        "Vim and 128 of an encoder",
    )
    threads: int = Field(0, ge=0, description="CPU threads of the model; 0: torch's choice")
    queue_rows: int = Field(4096, ge=1, description="rows that may wait before 429")
    queue_bytes: int = Field(2 * 1024**3, ge=1, description="bytes of waiting requests before 429")
    inflight_bytes: int = Field(
        0,
        ge=0,
        description="bytes before 429: of request bodies, and of large answers until clients have "
        "taken them; 0: 4 GiB, or half of the memory that the process may have if this is less",
    )
    client_share: float = Field(
        0.75,
        gt=0,
        le=1,
        description="of the queue and of `inflight_bytes`, how much the requests of one key or "
        "address may fill",
    )
    max_rows: int = Field(1024, ge=1, description="rows of one request")
    max_body_bytes: int = Field(512 * 1024**2, ge=1, description="bytes of one request body")
    max_image_size: int = Field(1344, ge=1, description="longest side of an image array, in pixels")
    max_image_pixels: int = Field(
        64_000_000, ge=1, description="pixels of one encoded image before decoding"
    )
    max_request_pixels: int = Field(
        1_000_000_000, ge=1, description="pixels of all encoded images of one request"
    )
    request_timeout: float = Field(
        300.0,
        gt=0,
        description="seconds from the whole body to the answer before 504; and of decoding images",
    )
    body_timeout: float = Field(60.0, gt=0, description="seconds between two parts of a body")
    least_rate: float = Field(
        32 * 1024.0,
        ge=0,
        description="bytes a second that a body, after its first `body_timeout`, must have arrived "
        "at, and at which an answer must be taken",
    )
    max_connections: int = Field(
        1024, ge=1, description="connections at once (of each HTTP process) before 503"
    )
    max_header_bytes: int = Field(
        32 * 1024, ge=1, description="bytes of a request's address and headers before 431"
    )
    header_timeout: float = Field(
        10.0, gt=0, description="seconds for a request's address and headers to arrive"
    )
    keep_alive_timeout: int = Field(
        5, ge=1, description="seconds that an idle connection stays open; more behind a proxy"
    )
    forward_timeout: float = Field(
        120.0,
        gt=0,
        description="seconds of one forward before its worker counts as hanging; on a CPU, of one "
        "that gets no processor time",
    )
    worker_restarts: int = Field(
        5, ge=0, description="failures of a worker in a row, after which it is given up"
    )
    check_interval: float = Field(
        600.0, ge=0, description="seconds between self-checks of an idle service; 0: none"
    )
    model_control: bool = Field(
        False, description="routes that load, unload and pin models while the service runs"
    )
    admin_keys: SecretStr = Field(
        SecretStr(""),
        description="keys that alone may control models, as api_keys; without them any key may",
    )
    max_models: int = Field(
        0, ge=0, description="loaded models, before the least used goes; 0: no limit"
    )
    idle_unload: Duration = Field(
        0.0,
        ge=0,
        description="time without a request after which a model gives its memory back until the "
        "next one (`90`, `30m`, `2h`); 0: never",
    )
    gpu_memory: str = Field(
        "",
        description="most memory of each GPU that torch takes: a share (`0.5`) or bytes (`20GB`)",
    )
    devices_expected: int = Field(
        0,
        ge=0,
        description="devices that there should be: with fewer the service is degraded and says so; "
        "0: as many as are found",
    )
    fault_injection: bool = Field(
        False, description="routes that make forwards fail, for tests of the recovery"
    )
    drain_timeout: float = Field(
        30.0, ge=0, description="seconds that requests in flight get after SIGTERM"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe log line"
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: console on a terminal, else JSON lines"
    )

    @field_validator("models", "certificates", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            value = value.split(",")
        if isinstance(value, list | tuple):
            return tuple(part.strip() for part in value if part.strip())
        return value

    @field_validator("models")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one model")
        return value
