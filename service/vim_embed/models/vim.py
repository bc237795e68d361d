"""Vision Mamba (Vim), inference only, readable from top to bottom.

The released models: bidirectional Mamba (v2), class token in the middle, the two
directions averaged. `VimConfig` also describes the forms in which hustvl and VideoMamba put the
class token first, leave it out, or add the directions; relatives with parts of their own are in
files beside this one. Parameter names are those of the released checkpoints, so a state
dict loads as it is. Source of the computation: hustvl/Vim, vim/models_mamba.py, and
"Vision Mamba", Zhu et al. 2024 (arXiv:2401.09417).

Knows nothing of files, devices, batching or HTTP. The operations that deserve a kernel
(conv + SiLU, scan, add + norm) go through `MixerOps`; see kernels/.

Shapes: B images, C channels, M patches, L tokens (M and the class token, where there is one),
D model width, E = 2 D inner width, N state size, R rank of the step-size projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vim_embed.kernels.ops import Direction, MixerOps
from vim_embed.kernels.reference import ReferenceOps
from vim_embed.types.token_layout import TokenLayout

ClsPlace = Literal["middle", "first", "none"]


@dataclass(frozen=True, kw_only=True)
class VimConfig:
    """Architecture of one model; most of it can be read off the shapes of a state dict.

    cls: where the class token stands among the patches; "middle" is index M // 2. averaged:
    whether the mixer halves the sum of its two directions. rope: see vim_rope.py. registers and
    reduction: see mamba_reg.py. mixer_norm: see fastvim.py.
    """

    dim: int
    depth: int
    image_size: int = 224
    patch_size: int = 16
    stride: int = 16
    d_state: int = 16
    d_conv: int = 4
    dt_rank: int = 0  # 0: ceil(dim / 16)
    expand: int = 2
    eps: float = 1e-5
    channels: int = 3
    cls: ClsPlace = "middle"
    averaged: bool = True
    rope: bool = False
    registers: int = 0
    reduction: int = 1
    mixer_norm: bool = False

    @property
    def inner(self) -> int:
        return self.expand * self.dim

    @property
    def rank(self) -> int:
        return self.dt_rank or -(-self.dim // 16)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patch rows and columns of an image of `height` × `width` pixels."""
        rows = (height - self.patch_size) // self.stride + 1
        columns = (width - self.patch_size) // self.stride + 1
        return rows, columns

    @property
    def native_grid(self) -> tuple[int, int]:
        return self.grid(self.image_size, self.image_size)


VIM_CONFIGS = {
    "vim-tiny": VimConfig(dim=192, depth=24),
    "vim-small": VimConfig(dim=384, depth=24),
    "vim-base": VimConfig(dim=768, depth=24),
    "vim-tiny-plus": VimConfig(dim=192, depth=24, stride=8),
    "vim-small-plus": VimConfig(dim=384, depth=24, stride=8),
}


class PatchEmbed(nn.Module):
    """Image (B, C, H, W) to patch vectors (B, M, D), row-major."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.dim, config.patch_size, config.stride)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches: Tensor = self.proj(pixel_values)
        return patches.flatten(2).transpose(1, 2)


class RMSNorm(nn.Module):
    """Holds the weight of the norm; the computation is `MixerOps.add_norm`."""

    def __init__(self, dim: int, eps: float, ops: MixerOps) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.ops = ops

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.ops.add_norm(hidden, residual, self.weight, self.eps)

    @staticmethod
    def observed(output: tuple[Tensor, Tensor]) -> Tensor:
        """What layer-wise extraction sees: the normed tokens."""
        return output[0]


class BiMamba(nn.Module):
    """The mixer: two selective scans, one per direction, gated and averaged (or added).

    (B, L, D) -> (B, L, D). Time order is never flipped in memory: the backward direction
    walks the same tensors from the last token to the first.
    """

    def __init__(self, config: VimConfig, ops: MixerOps) -> None:
        super().__init__()
        inner, rank, state = config.inner, config.rank, config.d_state
        self.inner, self.rank, self.state, self.ops = inner, rank, state, ops
        self.averaged = config.averaged
        self.in_proj = nn.Linear(config.dim, 2 * inner, bias=False)
        self.out_proj = nn.Linear(inner, config.dim, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, config.d_conv, groups=inner)
        self.conv1d_b = nn.Conv1d(inner, inner, config.d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.x_proj_b = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.dt_proj_b = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.zeros(inner, state))
        self.A_b_log = nn.Parameter(torch.zeros(inner, state))
        self.D = nn.Parameter(torch.ones(inner))
        self.D_b = nn.Parameter(torch.ones(inner))

    def forward(self, hidden: Tensor) -> Tensor:
        x, z = self.in_proj(hidden).split(self.inner, dim=-1)  # each (B, L, E)
        forward, backward = self.directions(x)
        mixed = self.ops.scan(forward, backward, z)  # (B, L, E), the average
        out: Tensor = self.out_proj(mixed if self.averaged else 2 * mixed)
        return out

    def directions(self, x: Tensor) -> tuple[Direction, Direction]:
        """What the forward and the backward scan take, from x (B, L, E)."""
        forward = self._direction(
            x, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D, reverse=False
        )
        backward = self._direction(
            x, self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b, reverse=True
        )
        return forward, backward

    def _direction(
        self,
        x: Tensor,
        conv: nn.Conv1d,
        x_proj: nn.Linear,
        dt_proj: nn.Linear,
        a_log: Tensor,
        skip: Tensor,
        *,
        reverse: bool,
    ) -> Direction:
        assert conv.bias is not None
        u = self.ops.conv_silu(x, conv.weight.squeeze(1), conv.bias, reverse=reverse)
        step, b, c = x_proj(u).split([self.rank, self.state, self.state], dim=-1)
        return Direction(
            u=u,
            step=step,
            step_weight=dt_proj.weight,
            delta_bias=dt_proj.bias,
            A_log=a_log,
            B=b,
            C=c,
            D=skip,
        )


class Block(nn.Module):
    """Add, then norm, then mix: (hidden, residual) -> (hidden, residual).

    The residual stream stays in float32; the stream after the block is their sum.
    """

    def __init__(self, config: VimConfig, ops: MixerOps) -> None:
        super().__init__()
        self.norm = RMSNorm(config.dim, config.eps, ops)
        self.mixer = BiMamba(config, ops)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        normed, residual = self.norm(hidden, residual)
        return self.mixer(normed), residual

    @staticmethod
    def observed(output: tuple[Tensor, Tensor]) -> Tensor:
        """What layer-wise extraction sees: the residual stream after the block."""
        return output[0].float() + output[1]


class Vim(nn.Module):
    """Native Vision Mamba without its classifier: images to normalised tokens."""

    kind: Literal["vim"] = "vim"  # its operations are chosen among those of kernels

    def __init__(self, config: VimConfig, ops: MixerOps | None = None) -> None:
        super().__init__()
        ops = ops or ReferenceOps()
        self.config = config
        rows, columns = config.native_grid
        special = len(self.places(rows * columns))
        self.patch_embed = PatchEmbed(config)
        if special:
            self.cls_token = nn.Parameter(torch.zeros(1, special, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, rows * columns + special, config.dim))
        self.layers = nn.ModuleList(Block(config, ops) for _ in range(config.depth))
        self.norm_f = RMSNorm(config.dim, config.eps, ops)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to the final tokens (B, L, D)."""
        hidden = self.embed_patches(pixel_values)
        residual: Tensor | None = None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        tokens: Tensor
        tokens, _ = self.norm_f(hidden, residual)
        return tokens

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) to (B, L, D): patches, class token, position embedding."""
        patches = self.patch_embed(pixel_values)
        tokens = interleave(patches, self.special_tokens(), self.places(patches.shape[1]))
        rows, columns = self.config.grid(*pixel_values.shape[-2:])
        return tokens + self.position_embedding(rows, columns)

    def special_tokens(self) -> Tensor:
        """(1, n, D): the tokens that are no patches, in the order of `places`."""
        return self.cls_token if self.config.cls != "none" else self.pos_embed[:, :0]

    def places(self, patches: int) -> tuple[int, ...]:
        """Indices that the special tokens get among so many patches, ascending."""
        return {"middle": (patches // 2,), "first": (0,), "none": ()}[self.config.cls]

    def position_embedding(self, rows: int, columns: int) -> Tensor:
        """(1, L, D) for rows × columns patches: the stored one, or a resampling of its grid."""
        native = self.config.native_grid
        if (rows, columns) == native:
            return self.pos_embed
        patches, special = separate(self.pos_embed, self.places(native[0] * native[1]))
        patches = resample(patches, native, (rows, columns))
        return interleave(patches, special, self.places(rows * columns))

    def layout(self, height: int, width: int) -> TokenLayout:
        """The final tokens of an image of that many pixels."""
        rows, columns = self.config.grid(height, width)
        cls = next(iter(self.places(rows * columns)), None)
        return TokenLayout(grid=(rows, columns), cls=cls)

    def features(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """What the model's own classifier reads of the final tokens (B, L, D): (B, D)."""
        return tokens.mean(dim=1) if layout.cls is None else tokens[:, layout.cls]

    @property
    def dim(self) -> int:
        return self.config.dim

    @property
    def features_dim(self) -> int:
        """Width of `features`."""
        return self.config.dim

    @property
    def channels(self) -> int:
        return self.config.channels

    @property
    def patch(self) -> tuple[int, int]:
        """Side of a patch, and pixels from one to the next."""
        return self.config.patch_size, self.config.stride

    @property
    def min_size(self) -> int:
        """Shortest side of an image that has a patch, in pixels."""
        return self.config.patch_size

    def cls_index(self, tokens: int) -> int:
        """Index of the class token among `tokens` final tokens."""
        (index,) = self.places(tokens - 1)
        return index

    def token_count(self, height: int, width: int) -> int:
        """Final tokens of an image of that many pixels."""
        return self.layout(height, width).count

    def use_ops(self, ops: MixerOps) -> None:
        """Compute with another backend from now on."""
        for module in self.modules():
            if isinstance(module, RMSNorm | BiMamba):
                module.ops = ops

    def prepare_for_graphs(self) -> None:
        """Nothing is to be joined: the kernels do that."""

    def in_reference(self, dtype: torch.dtype = torch.float32) -> Self:
        """The same weights in `dtype` on the reference operations; shared where they are so."""
        with torch.device("meta"):
            twin = type(self)(self.config, ReferenceOps())
        weights = {name: tensor.to(dtype) for name, tensor in self.state_dict().items()}
        twin.load_state_dict(weights, assign=True)
        return twin.requires_grad_(False).eval()


def interleave(patches: Tensor, special: Tensor, places: Sequence[int]) -> Tensor:
    """Patches (B, M, D) and special tokens (1, n, D), these at `places` of the (B, M + n, D)."""
    special = special.expand(patches.shape[0], -1, -1)
    parts, taken = [], 0
    for number, place in enumerate(places):
        parts += [patches[:, taken : place - number], special[:, number : number + 1]]
        taken = place - number
    return torch.cat([*parts, patches[:, taken:]], dim=1)


def separate(tokens: Tensor, places: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The inverse of `interleave`: patches (B, M, D) and special tokens (B, n, D).

    By slices: an index list would be sent to the device, which no captured graph may do.
    """
    patches, special, start = [], [tokens[:, :0]], 0
    for place in places:
        patches.append(tokens[:, start:place])
        special.append(tokens[:, place : place + 1])
        start = place + 1
    return torch.cat([*patches, tokens[:, start:]], dim=1), torch.cat(special, dim=1)


def resample(rows: Tensor, native: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Position rows (1, M, D) of one grid, bicubically, for another grid."""
    grid = rows.reshape(1, *native, -1).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, size=wanted, mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(rows.dtype)


@torch.no_grad()
def init_random(model: Vim, seed: int = 0) -> None:
    """Fill the model with seeded weights whose activations stay in a trained model's range.

    For demos, tests and benchmarks only. Mamba's own initialisation for the scan (S4D-real A,
    step sizes log-uniform in [1e-3, 1e-1], Gu & Dao 2023, arXiv:2312.00752), truncated normals
    elsewhere.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if leaf in ("A_log", "A_b_log"):
            states = torch.arange(1, parameter.shape[1] + 1, dtype=torch.float32)
            jitter = torch.empty(parameter.shape).uniform_(-0.1, 0.1, generator=generator)
            parameter.copy_(states.log() + jitter)
        elif "dt_proj" in name and leaf == "bias":
            low, high = torch.tensor([1e-3, 1e-1]).log()
            step = torch.empty(parameter.shape).uniform_(
                float(low), float(high), generator=generator
            )
            parameter.copy_(torch.log(torch.expm1(step.exp())))  # inverse softplus
        elif parameter.ndim == 1:
            scale = leaf in ("D", "D_b") or ("norm" in name and leaf == "weight")
            centre = 1.0 if scale else 0.0
            noise = torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator)
            parameter.copy_(centre + noise)
        else:
            small = leaf in ("pos_embed", "pos_embed_cls", "cls_token")
            spread = 0.02 if small else parameter[0].numel() ** -0.5
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, spread, generator=generator))
