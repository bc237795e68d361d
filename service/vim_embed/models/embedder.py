"""A loaded model: pixels in, embeddings out, on one device.

`embed` and `embed_layers` are the public Python interface; `compute` is what the engine calls
with tensors that are already on the device. Knows nothing of queues or HTTP.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from vim_embed.models.info import EMBEDDING, GRANULARITIES, EmbedOptions, ModelInfo
from vim_embed.models.layers import LAST, capture, layer_modules
from vim_embed.models.vim import Vim
from vim_embed.pixels import check_options, check_pixels
from vim_embed.preprocess import Triple

_CHUNK_ROWS = 32
_MAX_SIZE = 4096
# relative L2 against the float32 reference, by compute dtype
SELF_CHECK_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 5e-2}


class Backbone(Protocol):
    """A module from normalised images (B, 3, H, W) to final tokens (B, T, D)."""

    def __call__(self, pixel_values: Tensor) -> Tensor: ...

    def cls_index(self, tokens: int) -> int: ...

    def token_count(self, height: int, width: int) -> int: ...


@dataclass(frozen=True)
class CheckReport:
    """Outcome of a self-check: relative L2 error against the reference, and what is allowed."""

    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


class Embedder:
    """One model on one device. `info` says which weights and backend answer."""

    def __init__(
        self,
        info: ModelInfo,
        module: nn.Module,
        device: torch.device,
        fast: Backbone | None = None,
    ) -> None:
        """module: the model on `device`. fast: the same forward in another form, which takes
        float32 images and is used wherever the module's own layers are not asked for.
        """
        self.info = info
        self.device = device
        self.module = module
        self.dtype = next(module.parameters()).dtype
        self._backbone = fast or cast(Backbone, module)
        self._backbone_dtype = torch.float32 if fast else self.dtype
        self._constants: dict[Triple, Tensor] = {}
        self._lock = threading.Lock()  # hooks see every forward of the module

    def embed(
        self, pixel_values: ArrayLike | Tensor, pooling: str = "mean", *, exact: bool = False
    ) -> NDArray[np.float32]:
        """Embed (B, 3, H, W) uint8 RGB or normalised float pixels: (B, D) float32, not L2-normed.

        exact: the same bytes for an image whatever shares its batch, here as over HTTP.
        Raises PixelError (a ValueError) for input that cannot be embedded.
        """
        options = EmbedOptions(pooling=pooling, exact=exact)
        return self._in_chunks(pixel_values, options)[EMBEDDING]

    def embed_layers(
        self,
        pixel_values: ArrayLike | Tensor,
        granularity: str = "blocks",
        pooling: str = "mean",
        *,
        exact: bool = False,
    ) -> dict[str, NDArray[np.float32]]:
        """Pooled output of every layer, name -> (B, D); the last one is what `embed` gives.

        granularity: "blocks", "residual", "leaves" or "all". Raises PixelError.
        """
        options = EmbedOptions(pooling=pooling, layers=granularity, exact=exact)
        return self._in_chunks(pixel_values, options)

    @torch.inference_mode()
    def compute(self, pixel_values: Tensor, options: EmbedOptions) -> dict[str, Tensor]:
        """(B, 3, H, W) on the device to named float32 (B, D): `embedding`, or one per layer."""
        if options.exact:
            return self._compute_exact(pixel_values, options)
        images = self._normalised(pixel_values, options)
        if options.layers is None:
            with self._lock:
                final = self._backbone(images.to(self._backbone_dtype))
            return {EMBEDDING: self._pool(final, options.pooling)}
        tokens = self._backbone.token_count(*images.shape[-2:])

        def pool(output: Tensor) -> Tensor:
            return self._pool_layer(output, options.pooling, tokens)

        modules = layer_modules(self.module, options.layers)
        with self._lock, capture(modules, pool) as layers:
            final = self.module(images.to(self.dtype))
        return {**layers, LAST: self._pool(final, options.pooling)}

    def _compute_exact(self, pixel_values: Tensor, options: EmbedOptions) -> dict[str, Tensor]:
        """Row by row, each in a fresh tensor: one shape and one alignment for every row."""
        inexact = replace(options, exact=False)
        parts = [self.compute(row.clone(), inexact) for row in torch.split(pixel_values, 1)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def layer_names(self) -> dict[str, list[str]]:
        """By granularity, the layers that `embed_layers` gives; from one blank image's forward."""
        size = self.info.preprocessing.image_size
        blank = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=self.device)
        names = list(self.compute(blank, EmbedOptions(layers="all")))
        modules = {g: layer_modules(self.module, g) for g in GRANULARITIES}
        return {g: [n for n in names if n in modules[g] or n == LAST] for g in GRANULARITIES}

    def layer_kinds(self) -> dict[str, str]:
        """Of every layer that is a module, the name of its class."""
        return {n: type(m).__name__ for n, m in layer_modules(self.module, "all").items()}

    def self_check(self, seed: int = 0) -> CheckReport:
        """Embed one seeded image and compare with the float32 reference operations.

        A ViT has no second implementation here: its check is that the numbers are finite.
        """
        size = self.info.preprocessing.image_size
        generator = torch.Generator().manual_seed(seed)
        image = torch.randint(0, 256, (1, 3, size, size), generator=generator, dtype=torch.uint8)
        found = self.compute(image.to(self.device), EmbedOptions())[EMBEDDING]
        expected = found
        if isinstance(self.module, Vim):
            reference = Embedder(self.info, self.module.in_reference(), self.device)
            expected = reference.compute(image.to(self.device), EmbedOptions())[EMBEDDING]
        error = float((found - expected).norm() / expected.norm())
        return CheckReport(error, SELF_CHECK_TOLERANCE[self.dtype])

    def _in_chunks(
        self, pixel_values: ArrayLike | Tensor, options: EmbedOptions
    ) -> dict[str, NDArray[np.float32]]:
        check_options(options)
        if isinstance(pixel_values, Tensor):
            pixel_values = pixel_values.detach().cpu().numpy()
        pixels = check_pixels(np.asarray(pixel_values), self.info, max_size=_MAX_SIZE)
        parts = [
            self.compute(
                torch.from_numpy(np.require(part, requirements="W")).to(self.device), options
            )
            for part in np.array_split(pixels, -(-len(pixels) // _CHUNK_ROWS))
        ]
        return {name: torch.cat([p[name] for p in parts]).cpu().numpy() for name in parts[0]}

    def _normalised(self, pixel_values: Tensor, options: EmbedOptions) -> Tensor:
        if pixel_values.dtype != torch.uint8:
            return pixel_values
        spec = self.info.preprocessing
        mean = self._per_channel(options.mean or spec.mean)
        std = self._per_channel(options.std or spec.std)
        return (pixel_values.float() * (1 / 255) - mean) / std

    def _per_channel(self, values: Triple) -> Tensor:
        if values not in self._constants:
            self._constants[values] = torch.tensor(values, device=self.device).view(1, 3, 1, 1)
        return self._constants[values]

    def _pool(self, tokens: Tensor, pooling: str) -> Tensor:
        tokens = tokens.float()
        middle = self._backbone.cls_index(tokens.shape[1])
        if pooling == "cls":
            return tokens[:, middle].contiguous()
        if pooling == "patch-mean":
            tokens = torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], dim=1)
        return tokens.mean(dim=1)

    def _pool_layer(self, output: Tensor, pooling: str, tokens: int) -> Tensor:
        """Pool one layer's output: spatial mean of (B, C, h, w), `pooling` of (B, T, D).

        Layers ahead of the class token have patches alone; these are averaged.
        """
        if output.ndim == 4:
            return output.float().mean(dim=(2, 3))
        if output.ndim == 3:
            return self._pool(output, pooling if output.shape[1] == tokens else "mean")
        return output.float().flatten(1)
