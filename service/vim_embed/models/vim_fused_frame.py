"""What surrounds the blocks of the fused forward: images to the first stream, and the last norm.

Shapes: B images, M patches, L tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vim_embed.kernels.constants import Constants
from vim_embed.kernels.fused.launch import Kernels
from vim_embed.models.vim import Vim
from vim_embed.types.preprocessing import VIM_PREPROCESSING, Scaling

# Pixels go into the patches relative to black, and what black gives is added in float32: half
# precision then rounds a dark sky, most of an astronomer's image, to almost nothing.
_BLACK = Scaling.of_bytes(VIM_PREPROCESSING.mean, VIM_PREPROCESSING.std).offset


# What is added to normalised pixels before they are rounded.
ROUNDED_OFFSET = tuple(-black for black in _BLACK)


@dataclass(frozen=True)
class Images:
    """Images (B, 3, H, W), float32 or uint8, and what makes their pixels normalised ones; or the
    bits, int16, of pixels that are rounded already as `ROUNDED_OFFSET` says.
    """

    pixels: Tensor
    scaling: Scaling

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.pixels.shape[-2:]
        return height, width

    def part(self, start: int, stop: int) -> Images:
        return Images(self.pixels[start:stop], self.scaling)


class Frame:
    """A model's parts that are not blocks, in float32, and its patch weights in the dtype."""

    def __init__(self, model: Vim, dtype: torch.dtype, device: torch.device) -> None:
        """Copies the weights."""
        self._model = frame = _without_blocks(model, device)
        self.norm_f = frame.norm_f.weight
        patch = frame.patch_embed.proj.weight
        self._patch_weight = patch.flatten(1).t().to(dtype).contiguous()
        of_channels = self._patch_weight.float().view(3, -1, model.config.dim).sum(1)
        self._black_patch = patch.new_tensor(_BLACK) @ of_channels  # (D,) float32
        self._starts: Constants[tuple[int, int]] = Constants()

    def token_count(self, height: int, width: int) -> int:
        """Final tokens of an image of that many pixels."""
        return self._model.token_count(height, width)

    def cls_index(self, tokens: int) -> int:
        """Index of the class token among `tokens` final tokens."""
        return self._model.cls_index(tokens)

    def patches(self, images: Images, kernels: Kernels, *, pixels: Tensor, out: Tensor) -> Tensor:
        """Patch vectors (B · M, D) relative to black's, in the memory of `out` if that is enough.

        pixels: memory for the patches' pixels (B · M, 3 P P), likewise.
        """
        config = self._model.config
        rows, columns = config.grid(*images.size)
        patch, count = config.patch_size, len(images) * rows * columns
        flat, vectors = _view(pixels, count, 3 * patch * patch), _view(out, count, config.dim)
        scaling = images.scaling
        offset = [own + more for own, more in zip(scaling.offset, ROUNDED_OFFSET, strict=True)]
        kernels.patchify(
            pixels=images.pixels,
            out=flat,
            grid=(rows, columns),
            patch=patch,
            stride=config.stride,
            scale=scaling.scale,
            offset=offset,
        )
        return torch.mm(flat, self._patch_weight, out=vectors)

    def start(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Of an image of that many pixels, what its tokens begin with, and their patches.

        (L, D) float32: position embedding plus bias and black patch, or plus a special token.
        (L,) int32: the patch that a token is, or -1.
        """
        rows, columns = self._model.config.grid(height, width)
        start, sources = self._starts.get((rows, columns), lambda: self._start(rows, columns))
        return start, sources

    def _start(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        model, patches = self._model, rows * columns
        bias = model.patch_embed.proj.bias
        assert bias is not None
        position = model.position_embedding(rows, columns)[0].float()
        places = list(model.places(patches))
        start = position + bias.float() + self._black_patch
        start[places] = position[places] + model.special_tokens()[0].float()
        is_patch = torch.ones(len(start), dtype=torch.int32, device="cpu")
        is_patch[places] = 0
        sources = (is_patch.cumsum(0) - 1).masked_fill(is_patch == 0, -1)
        return start, sources.to(torch.int32).to(start.device)


def _without_blocks(model: Vim, device: torch.device) -> Vim:
    """What surrounds the blocks, in float32 on `device`: a model of no layers."""
    frame = type(model)(replace(model.config, depth=0))
    weights = {name: model.state_dict()[name].float() for name in frame.state_dict()}
    frame.load_state_dict(weights)
    return frame.requires_grad_(False).to(device)


def _view(buffer: Tensor, rows: int, columns: int) -> Tensor:
    """(rows, columns) in the buffer's memory, or in new memory if it is too small."""
    if rows * columns > buffer.numel():
        return buffer.new_empty(rows, columns)
    return buffer.view(-1)[: rows * columns].view(rows, columns)
