"""`Client`: the service from synchronous code, with several requests in flight.

What is sent and how answers are read is in requests.py; when to try again is in retries.py.
AsyncClient has the same methods with the same signatures.
"""

from __future__ import annotations

import time
from typing import Any, Self, Unpack, cast

import httpx
from numpy.typing import ArrayLike

from vim_embed_client.base import HTTPX_ERRORS, BaseClient
from vim_embed_client.compression import Compression
from vim_embed_client.concurrency import GuardedStream, Scope, run_each
from vim_embed_client.errors import NotReadyError, error_from_response
from vim_embed_client.merge import Merge, Progress
from vim_embed_client.options import (
    DEFAULT_TIMEOUT,
    EmbedOptions,
    ImageOptions,
    Options,
    Timeout,
)
from vim_embed_client.pixels import Images, as_array, channels_of
from vim_embed_client.requests import (
    Chunk,
    ChunkPlan,
    Request,
    model_path,
    plan_images,
    plan_pixels,
    read_answer,
    read_json,
    tell_deadline,
)
from vim_embed_client.results import (
    Embeddings,
    LayerEmbeddings,
    Liveness,
    ModelEntry,
    ModelList,
    Readiness,
)
from vim_embed_client.retries import caller_deadline


class Client(BaseClient):
    """A synchronous client; safe to share among threads. Close it, or use it in a `with`.

    base_url: of the service; default VIM_EMBED_URL, else http://127.0.0.1:8000.
    api_key: sent as a bearer token; default VIM_EMBED_API_KEY.
    ca_file: certificates (PEM) to trust for https, in place of the usual ones; default
        VIM_EMBED_CA_FILE.
    timeout: seconds, or an httpx.Timeout, for each step of a request: connecting (5 s), sending
        (60 s), and waiting for the answer (320 s).
    max_retries: further attempts after connection errors, 408, 429 and 5xx (not 501 and 504); 0:
        none at all.
    retry_for: seconds for which a service that restarts is waited for (no connection, `draining`,
        `not_ready`), however many attempts that takes; 0: max_retries alone counts, a second or two
        by default.
    deadline: seconds for a whole method call with all its requests and retries; None for no limit.
    rows_per_request: a larger batch is split; also by size, at 64 MiB a request.
    in_flight: requests of one batch under way at once.
    backoff: seconds before the first retry; doubled for each further one, with jitter, unless the
        service says how long to wait (Retry-After).
    compression: of arrays on their way: `zstd` (extra `zstd`) or `gzip`, for networks slower than
        about 100 MB/s; docs/measurements/cpu.md has figures.
    transport: an httpx transport to use in place of the network.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        ca_file: str | None = None,
        timeout: Timeout = DEFAULT_TIMEOUT,
        max_retries: int = 2,
        retry_for: float = 0.0,
        deadline: float | None = None,
        rows_per_request: int = 64,
        in_flight: int = 4,
        backoff: float = 0.5,
        compression: Compression | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._options = Options.resolve(
            base_url,
            api_key,
            ca_file,
            timeout=timeout,
            max_retries=max_retries,
            retry_for=retry_for,
            deadline=deadline,
            rows_per_request=rows_per_request,
            in_flight=in_flight,
            backoff=backoff,
            compression=compression,
        )
        self._http = httpx.Client(
            limits=self._options.limits(),
            verify=self._options.verify(),
            proxy=self._options.proxy() if transport is None else None,
            trust_env=False,
            transport=transport,
        )

    def close(self) -> None:
        """Close the connections."""
        if self._owns_connections:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def embed(
        self,
        pixel_values: ArrayLike,
        *,
        on_progress: Progress | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings:
        """Embed pixels: (B, C, H, W) or (C, H, W), a numpy array or a torch tensor.

        C is 3, or the `channels` of a model of other bands.

        pixel_values: uint8 is resized RGB, which the service normalises; floats are taken as
            already normalised. Views and memory maps are sent without being copied whole.
        model: a served model's name or Hub id; None is the service's default.
        pooling: `mean` (all final tokens), `cls`, `patch-mean`, `registers`, `max`, `features`
        (what the model's own classifier reads) or `tokens` (all of them, B × L × D), of those in
        the model's `poolings`.
        dtype: of the returned array: `float32`, or `float16` for half the bytes.
        exact: True for the same bytes whatever shares the batch; None is the service's setting.
        mean, std: a number for each channel, in place of the model's normalisation of uint8 pixels.
        wire: dtype in which pixels travel; `auto` keeps theirs (float64 goes as float32),
            `float16` halves the bytes of floats at a loss.
        image_size: side of the images in pixels, or (H, W), where another size than the model's
            is meant. Without it, such images are embedded with an ImageSizeWarning.
        on_progress: called with (rows done, all rows), in the calling thread.

        Returns a (B, D) array in the order of the rows, with its provenance.
        Raises InputError before anything is sent, later any other VimEmbedError; a failed chunk
        cancels the rest.
        """
        return self._run(self._planned(pixel_values, None, options), on_progress).embeddings()

    def embed_layers(
        self,
        pixel_values: ArrayLike,
        *,
        granularity: str = "blocks",
        on_progress: Progress | None = None,
        **options: Unpack[EmbedOptions],
    ) -> LayerEmbeddings:
        """Embed pixels once per layer: a mapping of layer name to (B, D), in the model's order.

        granularity: `blocks`, `residual`, `leaves` or `all`. The last layer,
        `last_hidden_state`, is what `embed` returns. For the rest see `embed`.
        """
        return self._run(self._planned(pixel_values, granularity, options), on_progress).layers()

    def embed_images(
        self,
        images: Images,
        *,
        on_progress: Progress | None = None,
        **options: Unpack[ImageOptions],
    ) -> Embeddings:
        """Embed encoded images: paths, bytes or Pillow images, one or many; one row each.

        Files and bytes are sent as they are (PNG, JPEG, WebP, TIFF, ...); the service decodes,
        resizes and normalises them. FITS files too, where the service has astropy: `bands`, `hdu`,
        `stretch`, `limits` and so on say how their fluxes become pixels (`FluxOptions`), as in
        `embed_images("m51.fits", bands=(3, 1, 0), limits=(0, 2), stretch="asinh")`. For the rest
        see `embed`.
        """
        plan = plan_images(images, self._options, **options)
        return self._run(plan, on_progress).embeddings()

    def embed_image_layers(
        self,
        images: Images,
        *,
        granularity: str = "blocks",
        on_progress: Progress | None = None,
        **options: Unpack[ImageOptions],
    ) -> LayerEmbeddings:
        """Embed encoded images once per layer: see `embed_images` and `embed_layers`."""
        plan = plan_images(images, self._options, layers=granularity, **options)
        return self._run(plan, on_progress).layers()

    def models(self) -> ModelList:
        """The served models and the name of the default one."""
        models: ModelList = self._get(Request(path="/models"), "models", "default")
        return models

    def model(self, name: str) -> ModelEntry:
        """One served model by its name: state, dim, preprocessing, limits, weights."""
        entry: ModelEntry = self._get(Request(path=model_path(name)), "name", "state")
        return entry

    def layers(self, name: str, granularity: str = "blocks") -> list[str]:
        """Names of a model's layers, in the order of `embed_layers`."""
        request = Request(path=model_path(name) + "/layers", params={"granularity": granularity})
        layers: list[str] = self._get(request, "layers")["layers"]
        return layers

    def layer_kinds(self, name: str, granularity: str = "blocks") -> dict[str, str]:
        """Layer name -> class of the module, for all of `layers` but `last_hidden_state`."""
        request = Request(path=model_path(name) + "/layers", params={"granularity": granularity})
        kinds: dict[str, str] = self._get(request, "kinds")["kinds"]
        return kinds

    def live(self) -> Liveness:
        """Ask once whether the process answers; raises TransportError where it does not."""
        liveness: Liveness = self._get(Request(path="/health/live", may_retry=False), "status")
        return liveness

    def ready(self) -> Readiness:
        """Ask once whether requests are taken; raises NotReadyError with the reasons if not."""
        readiness: Readiness = self._get(Request(path="/health/ready", may_retry=False), "status")
        return readiness

    def _planned(
        self, pixel_values: ArrayLike, layers: str | None, options: EmbedOptions
    ) -> ChunkPlan:
        """Requests for pixels; of other bands than three, the model is asked how many it takes."""
        array = as_array(pixel_values)
        channels = channels_of(array)
        if channels != 3:
            entry = self.model(options.get("model") or self.models()["default"])
            channels = entry.get("channels") or channels  # a model that loads does not tell
        return plan_pixels(array, self._options, layers=layers, channels=channels, **options)

    def _get(self, request: Request, *keys: str) -> Any:
        with Scope(self._options.deadline) as scope:
            return read_json(self._send(request, scope), keys)

    def _run(self, plan: ChunkPlan, on_progress: Progress | None) -> Merge:
        merge = Merge(plan, on_progress)
        workers = min(self._options.in_flight, len(plan.chunks))
        with Scope(self._options.deadline) as scope:

            def work(chunk: Chunk) -> httpx.Response:
                return self._send(chunk.request, scope)

            if len(plan.chunks) == 1 and self._options.deadline is None:
                merge.add(plan.chunks[0], read_answer(work(plan.chunks[0])))
                return merge
            for chunk, response in run_each(work, plan.chunks, workers=workers, scope=scope):
                merge.add(chunk, read_answer(response))
        return merge

    def _send(self, request: Request, scope: Scope) -> httpx.Response:
        attempt, failed = 0, 0.0
        while True:
            try:
                response = self._http.send(self._built(request, scope))
            except HTTPX_ERRORS as exc:
                error = self._failure(exc, request)
            else:
                answered = error_from_response(response, self.base_url)
                if answered is None:
                    return response
                error = answered
            error = caller_deadline(error, scope.left(), self._options)
            now = time.monotonic()
            failed = failed or now
            scope.sleep(self._delay(error, request, attempt, now - failed))
            attempt += 1

    def _built(self, request: Request, scope: Scope) -> httpx.Request:
        built = request.build(self._options)
        timeout = scope.limit(httpx.Timeout(self._options.timeout))
        tell_deadline(built, scope.remaining())
        built.extensions["timeout"] = timeout.as_dict()
        built.stream = GuardedStream(cast(httpx.SyncByteStream, built.stream), scope)
        return built


def ready_model(client: Client, name: str | None = None) -> ModelEntry:
    """The model of this name, or the service's own choice. Raises NotReadyError."""
    entry = client.model(name or client.models()["default"])
    if entry["state"] not in ("ready", "idle"):  # an idle one is loaded by the next request
        reason = f": {entry['reason']}" if entry["reason"] else ""
        raise NotReadyError(
            f"{entry['name']} is {entry['state']}{reason}. `vim-embed models` says when it is ready"
        )
    return entry
