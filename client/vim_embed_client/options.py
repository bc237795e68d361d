"""The options of a client and where their defaults come from."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypedDict

import httpx

from vim_embed_client.addresses import check_url, proxy_for
from vim_embed_client.compression import Compression, check_compression
from vim_embed_client.errors import ConfigurationError, VimEmbedError
from vim_embed_pixels.sizes import ImageSize

DEFAULT_URL = "http://127.0.0.1:8000"
# Waits a little longer than the service's own limit, so that its 504 arrives and is understood.
DEFAULT_TIMEOUT = httpx.Timeout(connect=5.0, read=320.0, write=60.0, pool=None)

# Shorter than the 5 s after which common servers close an idle connection.
_KEEPALIVE_S = 4.0

# What the service can make of a model's tokens; a model has those of its `poolings`.
POOLINGS = ("mean", "cls", "patch-mean", "registers", "max", "features", "tokens")
OF_THE_LAST_LAYER = ("features", "tokens")
GRANULARITIES = ("blocks", "residual", "leaves", "all")

Timeout = float | httpx.Timeout | None


class FluxOptions(TypedDict, total=False):
    """How FITS files become pixels: the options of `vim-embed embed`, by their names.

    Each may be the text that the command takes, such as `"3,1,0"` or `"0:22mag"`, or a number, a
    tuple of them, or for `limits` one pair or a tuple of pairs.

    survey: bands, limits and stretch of platonic-universe, such as "hsc".
    bands: places, from 0, of the bands of a cube that are red, green and blue; one for grey.
    hdu: name or number of the HDU, or three that are red, green and blue.
    stretch: "linear", "sqrt", "log", "asinh", "lupton", "zscale", "platonic" or "platonic@head".
    softening: astropy's a of "asinh" (by default 0.1), its Q of "lupton" (8).
    percentiles: of an image's finite fluxes, which the stretch takes as 0 and 1.
    limits: fluxes in their place, in units of the file, with a unit, or "zscale".
    zero_point: AB magnitude of a flux of 1, for limits with units.
    per_band: percentiles of each band and not of the three together.
    blank: in place of fluxes that are not finite: a number, or "sky", the median of the band.
    crop: side in pixels of the middle square that is taken before the stretch.
    flip: true turns the image upside down.
    """

    survey: str
    bands: str | Sequence[int | str]
    hdu: str | int | Sequence[int | str]
    stretch: str
    softening: float
    percentiles: str | Sequence[float]
    limits: str | Sequence[Any]
    zero_point: float
    per_band: bool
    blank: str | float
    crop: int
    flip: bool


class CommonOptions(TypedDict, total=False):
    """What images and arrays have in common; `Client.embed` says what each option means."""

    model: str | None
    pooling: str
    dtype: str
    exact: bool | None
    mean: Sequence[float] | None
    std: Sequence[float] | None


class ImageOptions(CommonOptions, FluxOptions, total=False):
    """How `embed_images` embeds; `Client.embed` says what each option means."""


class EmbedOptions(CommonOptions, total=False):
    """How `embed` and `embed_layers` embed; `Client.embed` says what each option means."""

    wire: str
    image_size: ImageSize | None


FLUX_OPTIONS = tuple(FluxOptions.__annotations__)


class OptionChanges(TypedDict, total=False):
    """The options that `with_options` takes.

    give_up_on: errors after which no further attempt is made; the rest as of `Client`.
    """

    api_key: str | None
    timeout: Timeout
    max_retries: int
    retry_for: float
    deadline: float | None
    rows_per_request: int
    in_flight: int
    backoff: float
    compression: Compression | None
    give_up_on: tuple[type[VimEmbedError], ...]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `Client` was asked for, checked; see there for the meaning of each."""

    base_url: str
    api_key: str | None = field(repr=False)
    timeout: Timeout
    max_retries: int
    deadline: float | None
    rows_per_request: int
    in_flight: int
    backoff: float
    retry_for: float = 0.0
    ca_file: str | None = None
    compression: Compression | None = None
    give_up_on: tuple[type[VimEmbedError], ...] = ()

    def __post_init__(self) -> None:
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ConfigurationError("an API key can only have plain characters (ASCII)")
        for name, least in (("max_retries", 0), ("rows_per_request", 1), ("in_flight", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ConfigurationError(
                    f"{name} must be a whole number from {least}, got {value!r}"
                )
        if not self.retry_for >= 0:
            raise ConfigurationError(f"retry_for must be seconds from 0, got {self.retry_for}")
        if self.backoff < 0:
            raise ConfigurationError(f"backoff must not be negative, got {self.backoff}")
        if self.deadline is not None and self.deadline <= 0:
            raise ConfigurationError(f"deadline must be positive seconds, got {self.deadline}")
        check_compression(self.compression)
        check_url(self.base_url)

    @classmethod
    def resolve(
        cls, base_url: str | None, api_key: str | None, ca_file: str | None = None, **options: Any
    ) -> Self:
        """Arguments first, then VIM_EMBED_URL, _API_KEY and _CA_FILE, then this machine."""
        url = base_url or os.environ.get("VIM_EMBED_URL") or DEFAULT_URL
        key = api_key or os.environ.get("VIM_EMBED_API_KEY") or None
        ca = ca_file or os.environ.get("VIM_EMBED_CA_FILE") or None
        return cls(base_url=url.rstrip("/"), api_key=key, ca_file=ca, **options)

    def changed(self, changes: OptionChanges) -> Self:
        """These options with some replaced."""
        fixed = {"base_url", "ca_file"}  # of the connections, which are shared
        unknown = set(changes) - {f.name for f in fields(self)} | set(changes) & fixed
        if unknown:
            raise ConfigurationError(f"no such option: {', '.join(sorted(unknown))}")
        return replace(self, **changes)

    def headers(self) -> dict[str, str]:
        """The headers that every request carries."""
        headers = {
            "Accept-Encoding": "identity",
            "User-Agent": f"vim-embed-client httpx/{httpx.__version__}",
        }
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return headers

    def limits(self) -> httpx.Limits:
        """Connections: as many as are asked for, idle ones dropped before the server does."""
        keep = max(20, self.in_flight)
        return httpx.Limits(max_keepalive_connections=keep, keepalive_expiry=_KEEPALIVE_S)

    def verify(self) -> ssl.SSLContext:
        """Whose certificates are trusted: the CA file's alone, or the usual ones; without TLS none.

        Raises ConfigurationError for a file that cannot be used.
        """
        if self.ca_file is None:
            if self.base_url.startswith("https:"):
                return _usual_certificates()
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # to read the usual ones takes 30 ms
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:  # ssl.SSLError too
            raise ConfigurationError(
                f"{self.ca_file} is no readable file of CA certificates in PEM form "
                f"({error.strerror or error}): check VIM_EMBED_CA_FILE"
            ) from None

    def proxy(self) -> httpx.Proxy | None:
        """The proxy that the environment names for this service; see addresses.proxy_for."""
        return proxy_for(self.base_url)


def _usual_certificates() -> ssl.SSLContext:
    """Those of certifi, or of SSL_CERT_FILE or SSL_CERT_DIR."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise ConfigurationError(
            f"SSL_CERT_FILE or SSL_CERT_DIR cannot be used ({error.strerror or error})"
        ) from None
