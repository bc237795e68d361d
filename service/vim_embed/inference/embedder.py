"""A loaded model: pixels in, embeddings out, on one device.

`embed` and `embed_layers` are the public Python interface; the engine calls `run`, with tensors
that are already on the device, so that both give the same bytes. Knows nothing of queues or HTTP.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import NoReturn, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from vim_embed.inference.arrays import as_array
from vim_embed.inference.backbone import Backbone, FusedBackbone
from vim_embed.inference.beside import Beside, SideBySide
from vim_embed.inference.chunks import Way, in_chunks
from vim_embed.inference.cuda_graphs import Capture, Compute, GraphCache, buckets_up_to
from vim_embed.inference.device_copy import OnItsWay, to_host
from vim_embed.inference.exact import EXACT_ROWS, in_fixed_batches, rows_are_independent
from vim_embed.inference.layers import LAST, capture, layer_modules
from vim_embed.inference.normalisation import Normalisation
from vim_embed.inference.one_process import OneProcess, refuse_copy
from vim_embed.inference.pooling import pool, pool_layer
from vim_embed.inference.precision import own_precision
from vim_embed.inference.short_memory import one_short_memory
from vim_embed.inference.staging import HostStaging
from vim_embed.kernels.streams import own_stream
from vim_embed.types.model_info import (
    EMBEDDING,
    GRANULARITIES,
    EmbedOptions,
    ModelInfo,
)
from vim_embed.types.pixels import (
    PixelArray,
    PixelError,
    check_bytes,
    check_options,
    check_shape,
)
from vim_embed.types.token_layout import TokenLayout
from vim_embed_pixels.sizes import ImageSize, ImageSizeWarning, against_size, size_warning

_CHUNK_ROWS = 32
# Graphs of more images fill the device: two of 128 give 0 to 3 % more than one after the other.
_ROWS_BESIDE = 64
_MAX_SIZE = 4096
_TRIALS = 4096  # of exact mode that are remembered, by what callers choose


class Embedder:
    """One model on one device, for any thread of the process that loaded it. `info` says which
    weights and backend answer.
    """

    def __init__(
        self,
        info: ModelInfo,
        module: nn.Module,
        device: torch.device,
        fused: FusedBackbone | None = None,
    ) -> None:
        """module: the model on `device`. fused: the same forward in another form, which is used
        wherever the module's own layers are not asked for.
        """
        self.info = info
        self.device = device
        self.module = module
        self.dtype = next(module.parameters()).dtype
        self._backbone = cast(Backbone, module)
        self._fused = fused
        self._graphs: SideBySide | None = None
        self._chunk_rows = _CHUNK_ROWS
        self._independent: dict[tuple[object, ...], bool] = {}
        self._normalise = Normalisation(info.preprocessing, device)
        self._process = OneProcess(device)
        self._lock = threading.RLock()  # hooks see every forward; graphs share their buffers

    def __reduce__(self) -> NoReturn:
        refuse_copy(f"the model {self.info.name}")

    def embed(
        self,
        pixel_values: ArrayLike | Tensor,
        pooling: str = "mean",
        *,
        exact: bool = False,
        image_size: ImageSize | None = None,
    ) -> NDArray[np.float32]:
        """Embed (B, 3, H, W) uint8 RGB or normalised float pixels: (B, D) float32, not L2-normed.

        exact: the same bytes for an image whatever shares its batch, here as over HTTP.
        image_size: side of the images in pixels, or (H, W), where another size than the model's
            is meant. Without it, such images are embedded with an ImageSizeWarning.
        Raises PixelError (a ValueError) for input that cannot be embedded, and RuntimeError in a
        process that was forked after the model was loaded.
        """
        options = EmbedOptions(pooling=pooling, exact=exact)
        pixels = self._checked(pixel_values, options, image_size)
        return self._in_chunks(pixels, options)[EMBEDDING]

    def embed_layers(
        self,
        pixel_values: ArrayLike | Tensor,
        granularity: str = "blocks",
        pooling: str = "mean",
        *,
        exact: bool = False,
        image_size: ImageSize | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Pooled output of every layer, name -> (B, D); the last one is what `embed` gives.

        granularity: "blocks", "residual", "leaves" or "all". For the rest see `embed`.
        """
        options = EmbedOptions(pooling=pooling, layers=granularity, exact=exact)
        return self._in_chunks(self._checked(pixel_values, options, image_size), options)

    @torch.inference_mode()
    def compute(self, pixel_values: Tensor, options: EmbedOptions) -> dict[str, Tensor]:
        """One forward: (B, 3, H, W) on the device to named float32 (B, D) there, in this shape.

        The names: `embedding`, or one per layer.
        """
        with self._lock, own_precision(self.device):
            if options.layers is None:
                return {EMBEDDING: self._embedding(pixel_values, options)}
            if self._fused is not None and options.layers == "blocks":
                return self._fused_blocks(self._fused, pixel_values, options)
            images = self._normalise(pixel_values, options)
            return self._module_layers(images, options.layers, options.pooling)

    def pooled(self, tokens: Tensor, pooling: str, height: int, width: int) -> Tensor:
        """What `compute` makes of final tokens (B, L, D) of such images, by another pooling."""
        layout = self._backbone.layout(height, width)
        return self._pool(tokens.to(self.dtype), pooling, layout)

    def normalised(self, pixel_values: Tensor) -> Tensor:
        """uint8 (B, C, H, W) as the model's own normalisation has them, float32."""
        with self._lock:
            return self._normalise(pixel_values, EmbedOptions())

    def run(self, pixel_values: Tensor, options: EmbedOptions) -> dict[str, Tensor]:
        """`compute` as it serves: through graphs where there are any; tensors on the host.

        In exact mode in batches of one fixed shape, the last filled up. From any thread.
        """
        return self.launch(pixel_values, options).wait()

    @torch.inference_mode()
    def launch(
        self, pixel_values: Tensor, options: EmbedOptions, *, spin: bool = False
    ) -> OnItsWay:
        """`run` that does not wait for the device: the next may be launched meanwhile.

        spin: see `to_host`. Raises torch.OutOfMemoryError.
        """
        with self._lock, one_short_memory():
            if options.exact:
                return OnItsWay(self._run_exact(pixel_values, replace(options, exact=False)))
            launched = to_host(self._forward(pixel_values, options), spin=spin)
            if self._graphs is not None:
                self._graphs.launched(launched)
            return launched

    @torch.inference_mode()
    def settle_exact(self, rows: int = 0) -> None:
        """Fix the batches of exact mode at `rows` (0: by device) of the native size, if that works.

        Where rows depend on their batch, or memory is short, exact mode goes row by row.
        """
        rows = rows or EXACT_ROWS[self.device.type]
        self._set_exact(rows, "row by row")
        if rows == 1:
            return
        try:
            if self._graphs is not None:  # the largest first: the others fit into its memory
                self.run(self._blank(self._chunk_rows), EmbedOptions())
            holds = self._exact_rows(self._blank(1), EmbedOptions()) == rows
        except torch.OutOfMemoryError:
            self._set_exact(1, f"row by row: batches of {rows} do not fit the memory")
        else:
            if holds:
                self._set_exact(rows, "rows were tried and do not depend on their mates")
            else:
                self._set_exact(1, f"row by row: in batches of {rows}, rows depend on their mates")

    def use_graphs(self, rows: int, capture: Capture | None = None) -> None:
        """Run through CUDA graphs of up to `rows` images from now on, captured at first use."""
        self._backbone.prepare_for_graphs()
        buckets = buckets_up_to(rows)
        compute = _weakly(self)
        own = GraphCache(compute, buckets, capture=capture)
        two = self.device.type == "cuda" and self._fused is not None and rows <= _ROWS_BESIDE
        beside = Beside(GraphCache(compute, buckets), own_stream(self.device)) if two else None
        self._graphs = SideBySide(self.info.name, own, beside, self._lock)
        self._chunk_rows = rows

    def warm_up(self, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Capture the graphs of the native size and the default options now.

        progress(done, of): called before the first graph and after each.
        """
        buckets = [] if self._graphs is None else self._graphs.own.buckets[::-1]
        for done, bucket in enumerate(buckets):
            progress(done, len(buckets))
            self.run(self._blank(bucket), EmbedOptions())
        progress(len(buckets), len(buckets))

    def rows_at_once(self, rows: int, height: int, width: int) -> int:
        """`rows` of the native size in images of another: fewer of larger ones, at least 1."""
        native = self.info.preprocessing.image_size
        return max(1, min(rows, rows * native**2 // (height * width)))

    def _forward(
        self, pixel_values: Tensor, options: EmbedOptions, bucket: int | None = None
    ) -> dict[str, Tensor]:
        """Through a graph (of `bucket` rows), or eagerly for hooks, which see no replay."""
        if self._graphs is None or self._needs_hooks(options):
            return self.compute(pixel_values, options)
        return self._graphs(pixel_values, options, bucket)

    def _run_exact(self, pixel_values: Tensor, options: EmbedOptions) -> dict[str, Tensor]:
        rows = self._exact_rows(pixel_values, options)
        forward = partial(self._forward, options=options, bucket=rows)
        return in_fixed_batches(forward, pixel_values, rows)

    def _exact_rows(self, like: Tensor, options: EmbedOptions) -> int:
        """Rows of every exact batch of such images: as set, where that was tried out, else 1."""
        rows = self.rows_at_once(self.info.exact_rows, *like.shape[-2:])
        if rows == 1 or self._needs_hooks(options):
            return 1
        key = (rows, tuple(like.shape[1:]), like.dtype, options.pooling, options.layers)
        if key not in self._independent:
            if len(self._independent) >= _TRIALS:
                self._independent.clear()
            forward = partial(self._forward, options=options, bucket=rows)
            self._independent[key] = rows_are_independent(forward, like, rows)
        return rows if self._independent[key] else 1

    def _set_exact(self, rows: int, reason: str) -> None:
        self.info = replace(self.info, exact_rows=rows, exact_reason=reason)

    def _needs_hooks(self, options: EmbedOptions) -> bool:
        """Whether the module's own layers are looked into; the fused forward shows its blocks."""
        shown = (None,) if self._fused is None else (None, "blocks")
        return options.layers not in shown

    def _embedding(self, pixel_values: Tensor, options: EmbedOptions) -> Tensor:
        layout = self._layout(pixel_values)
        if self._fused is None:
            images = self._normalise(pixel_values, options)
            return self._pool(self._backbone(images.to(self.dtype)), options.pooling, layout)
        scaling = self._normalise.scaling(pixel_values, options)
        if options.pooling == "cls":
            return self._fused.cls(pixel_values, scaling=scaling).float()
        return self._pool(self._fused(pixel_values, scaling=scaling), options.pooling, layout)

    def _fused_blocks(
        self, fused: FusedBackbone, pixel_values: Tensor, options: EmbedOptions
    ) -> dict[str, Tensor]:
        """What hooks on the module's blocks would give, under the same names, by `on_block`."""
        layout, patch_embed = self._layout(pixel_values), self.module.get_submodule("patch_embed")
        images = self._normalise(pixel_values, options).to(self.dtype)
        layers = {"patch_embed": pool_layer(patch_embed(images), options.pooling, layout)}

        def keep(index: int, stream: Tensor) -> None:
            layers[f"layers.{index}"] = pool(stream, options.pooling, layout)

        scaling = self._normalise.scaling(pixel_values, options)
        final = pool(fused(pixel_values, scaling=scaling, on_block=keep), options.pooling, layout)
        return {**layers, "norm_f": final, LAST: final}

    def _module_layers(self, images: Tensor, granularity: str, pooling: str) -> dict[str, Tensor]:
        layout = self._layout(images)

        def pooled(output: Tensor) -> Tensor:
            return pool_layer(output, pooling, layout)

        with capture(layer_modules(self.module, granularity), pooled) as layers:
            final = self.module(images.to(self.dtype))
        return {**layers, LAST: pool(final, pooling, layout)}

    def layer_names(self) -> dict[str, list[str]]:
        """By granularity, the layers that `embed_layers` gives."""
        return {granularity: list(sizes) for granularity, sizes in self.layer_sizes().items()}

    def layer_sizes(self) -> dict[str, dict[str, int]]:
        """By granularity and layer, the numbers of a row; from one blank image's forward."""
        found = self.compute(self._blank(1), EmbedOptions(layers="all"))
        sizes = {name: tensor.numel() for name, tensor in found.items()}
        modules = {g: layer_modules(self.module, g) for g in GRANULARITIES}
        return {
            g: {name: size for name, size in sizes.items() if name in modules[g] or name == LAST}
            for g in GRANULARITIES
        }

    def layer_kinds(self) -> dict[str, str]:
        """Of every layer that is a module, the name of its class."""
        return {n: type(m).__name__ for n, m in layer_modules(self.module, "all").items()}

    def _checked(
        self,
        pixel_values: ArrayLike | Tensor,
        options: EmbedOptions,
        image_size: ImageSize | None,
    ) -> PixelArray:
        """(B, C, H, W) that the model takes with these options, unconverted. Raises PixelError.

        Warns the caller's caller of another size than the model's, unless `image_size` says it.
        """
        self._process.check()
        check_options(options, self.info)
        pixels = check_shape(as_array(pixel_values), self.info, max_size=_MAX_SIZE)
        check_bytes(pixels, options, self.info)
        height, width = pixels.shape[-2:]
        if image_size is None:
            if remark := size_warning(height, width, self.info.preprocessing.image_size):
                warnings.warn(remark, ImageSizeWarning, stacklevel=3)
        elif wrong := against_size(image_size, height, width):
            raise PixelError(wrong)
        return pixels

    def _in_chunks(
        self, pixels: PixelArray, options: EmbedOptions
    ) -> dict[str, NDArray[np.float32]]:
        plain = options.layers is None and not options.exact
        way = Way(
            device=self.device,
            staging=self._staging,
            launch=partial(self.launch, options=options, spin=True),
            rounding=self._fused.rounding if self._fused is not None and plain else None,
            graphs=self._graphs,
            beside=plain,
        )
        return in_chunks(pixels, self.rows_at_once(self._chunk_rows, *pixels.shape[-2:]), way)

    @cached_property
    def _staging(self) -> HostStaging:
        """Made at first use: a served model's rows come staged by its engine."""
        return HostStaging(self.device, alone=True)

    def _blank(self, rows: int) -> Tensor:
        size = self.info.preprocessing.image_size
        shape = (rows, self.info.channels, size, size)
        return torch.zeros(shape, dtype=torch.uint8, device=self.device)

    def _layout(self, pixel_values: Tensor) -> TokenLayout:
        height, width = pixel_values.shape[-2:]
        return self._backbone.layout(height, width)

    def _pool(self, tokens: Tensor, pooling: str, layout: TokenLayout) -> Tensor:
        if pooling == "features":
            return self._backbone.features(tokens, layout).float()
        return pool(tokens, pooling, layout)


def _weakly(model: Embedder) -> Compute:
    """`model.compute` for its graphs, which would keep it, and its memory, in a cycle."""
    known = weakref.ref(model)

    def compute(pixel_values: Tensor, options: EmbedOptions) -> dict[str, Tensor]:
        found = known()
        assert found is not None
        return found.compute(pixel_values, options)

    return compute
