"""`AsyncClient`: the service from asyncio code, with several requests in flight.

The same methods with the same signatures as Client, which documents them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, Unpack

import httpx
from numpy.typing import ArrayLike

from vim_embed_client.base import HTTPX_ERRORS, BaseClient
from vim_embed_client.compression import Compression
from vim_embed_client.errors import deadline_expired, error_from_response
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


class AsyncClient(BaseClient):
    """An asynchronous client for asyncio. Close it, or use it in an `async with`.

    The arguments are those of Client; in_flight counts tasks, transport is an asynchronous one.
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
        transport: httpx.AsyncBaseTransport | None = None,
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
        self._http = httpx.AsyncClient(
            limits=self._options.limits(),
            verify=self._options.verify(),
            proxy=self._options.proxy() if transport is None else None,
            trust_env=False,
            transport=transport,
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._owns_connections:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def embed(
        self,
        pixel_values: ArrayLike,
        *,
        on_progress: Progress | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embeddings:
        """See Client.embed."""
        plan = await self._planned(pixel_values, None, options)
        return (await self._run(plan, on_progress)).embeddings()

    async def embed_layers(
        self,
        pixel_values: ArrayLike,
        *,
        granularity: str = "blocks",
        on_progress: Progress | None = None,
        **options: Unpack[EmbedOptions],
    ) -> LayerEmbeddings:
        """See Client.embed_layers."""
        plan = await self._planned(pixel_values, granularity, options)
        return (await self._run(plan, on_progress)).layers()

    async def embed_images(
        self,
        images: Images,
        *,
        on_progress: Progress | None = None,
        **options: Unpack[ImageOptions],
    ) -> Embeddings:
        """See Client.embed_images."""
        plan = await asyncio.to_thread(plan_images, images, self._options, **options)
        return (await self._run(plan, on_progress)).embeddings()

    async def embed_image_layers(
        self,
        images: Images,
        *,
        granularity: str = "blocks",
        on_progress: Progress | None = None,
        **options: Unpack[ImageOptions],
    ) -> LayerEmbeddings:
        """See Client.embed_image_layers."""
        plan = await asyncio.to_thread(
            plan_images, images, self._options, layers=granularity, **options
        )
        return (await self._run(plan, on_progress)).layers()

    async def models(self) -> ModelList:
        """See Client.models."""
        models: ModelList = await self._get(Request(path="/models"), "models", "default")
        return models

    async def model(self, name: str) -> ModelEntry:
        """See Client.model."""
        entry: ModelEntry = await self._get(Request(path=model_path(name)), "name", "state")
        return entry

    async def layers(self, name: str, granularity: str = "blocks") -> list[str]:
        """See Client.layers."""
        request = Request(path=model_path(name) + "/layers", params={"granularity": granularity})
        layers: list[str] = (await self._get(request, "layers"))["layers"]
        return layers

    async def layer_kinds(self, name: str, granularity: str = "blocks") -> dict[str, str]:
        """See Client.layer_kinds."""
        request = Request(path=model_path(name) + "/layers", params={"granularity": granularity})
        kinds: dict[str, str] = (await self._get(request, "kinds"))["kinds"]
        return kinds

    async def live(self) -> Liveness:
        """See Client.live."""
        liveness: Liveness = await self._get(
            Request(path="/health/live", may_retry=False), "status"
        )
        return liveness

    async def ready(self) -> Readiness:
        """See Client.ready."""
        readiness: Readiness = await self._get(
            Request(path="/health/ready", may_retry=False), "status"
        )
        return readiness

    async def _planned(
        self, pixel_values: ArrayLike, layers: str | None, options: EmbedOptions
    ) -> ChunkPlan:
        """See Client._planned."""
        array = await asyncio.to_thread(as_array, pixel_values)
        channels = channels_of(array)
        if channels != 3:
            entry = await self.model(options.get("model") or (await self.models())["default"])
            channels = entry.get("channels") or channels
        return await asyncio.to_thread(
            plan_pixels, array, self._options, layers=layers, channels=channels, **options
        )

    async def _get(self, request: Request, *keys: str) -> Any:
        async with self._deadline() as until:
            return read_json(await self._send(request, until), keys)

    async def _run(self, plan: ChunkPlan, on_progress: Progress | None) -> Merge:
        merge = Merge(plan, on_progress)
        chunks = iter(plan.chunks)

        async def work() -> None:
            for chunk in chunks:
                merge.add(chunk, read_answer(await self._send(chunk.request, until)))

        async with self._deadline() as until:
            with _first_error():
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._options.in_flight, len(plan.chunks))):
                        group.create_task(work())
        return merge

    async def _send(self, request: Request, until: asyncio.Timeout) -> httpx.Response:
        attempt, failed = 0, 0.0
        while True:
            try:
                response = await self._http.send(await self._built(request, until))
            except HTTPX_ERRORS as exc:
                error = self._failure(exc, request)
            else:
                answered = error_from_response(response, self.base_url)
                if answered is None:
                    return response
                error = answered
            error = caller_deadline(error, _left(until), self._options)
            now = time.monotonic()
            failed = failed or now
            await asyncio.sleep(self._delay(error, request, attempt, now - failed))
            attempt += 1

    async def _built(self, request: Request, until: asyncio.Timeout) -> httpx.Request:
        built = await asyncio.to_thread(request.build, self._options)
        tell_deadline(built, _left(until))
        built.extensions["timeout"] = httpx.Timeout(self._options.timeout).as_dict()
        return built

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[asyncio.Timeout]:
        try:
            async with asyncio.timeout(self._options.deadline) as until:
                yield until
        except TimeoutError:
            raise deadline_expired(self._options.deadline) from None


def _left(until: asyncio.Timeout) -> float | None:
    """Seconds until the deadline, negative after it; None without one."""
    ends = until.when()
    return None if ends is None else ends - asyncio.get_running_loop().time()


@contextmanager
def _first_error() -> Iterator[None]:
    """Let the first failure of a task group through in place of the group."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
