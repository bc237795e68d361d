"""Random small members of every family of Vim, beside the same formulas written out once more.

`expected` is an implementation of its own: token by token, in float64, of the original code's
computation, with nothing of `vim_embed` in it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from support.fixtures_vim import relative_l2
from vim_embed import load_model
from vim_embed.weights.families import FAMILIES

State = dict[str, Tensor]
BAR = 1e-5


@dataclass(frozen=True)
class Member:
    """A model's sizes; side: patches along an edge; registers and reduction: Mamba-Reg's."""

    family: str
    dim: int
    depth: int
    side: int
    patch: int
    stride: int
    channels: int
    states: int
    taps: int
    classes: int
    registers: int
    reduction: int

    @property
    def size(self) -> int:
        return (self.side - 1) * self.stride + self.patch

    @property
    def place(self) -> str:
        if self.family.startswith("fastvim"):
            return "middle"
        if self.family == "mamba-reg":
            return "registers"
        if self.family == "videomamba" or "front" in self.family:
            return "first"
        return "none" if "nocls" in self.family else "middle"

    @property
    def summed(self) -> bool:
        return self.family.endswith("-sum") or self.family == "videomamba"

    @property
    def special(self) -> int:
        return {"registers": self.registers, "none": 0}.get(self.place, 1)


def member(family: str, seed: int) -> Member:
    rng = random.Random(f"{family} {seed}")
    side, patch = rng.randint(2, 7), rng.choice([4, 8, 16])
    if "rope" in family and "front" in family:
        side = 2 * (side // 2)  # the original tells the class token by an odd length
    dim = 8 * rng.randint(1, 9)
    overlapping = family.startswith("vim") and side % 2 == 1
    return Member(
        family=family,
        dim=dim,
        depth=rng.randint(1, 4),
        side=side,
        patch=patch,
        stride=patch // 2 if overlapping else patch,
        channels=rng.choice([1, 3, 3, 5]),
        states=rng.choice([16, 16, 4, 9]),
        taps=rng.choice([4, 4, 2, 3]),
        classes=rng.choice([2, 10, 1000]),
        registers=rng.randint(1, max(1, min(6, side * side - 1))),
        reduction=rng.choice([r for r in (1, 2, 4) if dim % r == 0]),
    )


def weights(m: Member, seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    inner, rank, patches = 2 * m.dim, -(-m.dim // 16), m.side**2
    registers = m.place == "registers"
    state = {
        "patch_embed.proj.weight": normal(m.dim, m.channels, m.patch, m.patch, scale=0.1),
        "patch_embed.proj.bias": normal(m.dim),
        "pos_embed": normal(1, patches + (0 if registers else m.special), m.dim),
        "norm_f.weight": 1 + normal(m.dim, scale=0.1),
        "head.weight": normal(m.classes, m.dim),
        "head.bias": normal(m.classes),
    }
    if m.special:
        state["cls_token"] = normal(1, m.special, m.dim)
    if registers:
        state["pos_embed_cls"] = normal(1, m.special, m.dim)
        if m.reduction > 1:
            state["neck.weight"] = normal(m.dim // m.reduction, m.dim, scale=m.dim**-0.5)
            state["norm_neck.weight"] = 1 + normal(m.registers * (m.dim // m.reduction), scale=0.1)
    for layer in range(m.depth):
        own = {"norm.weight": 1 + normal(m.dim, scale=0.1)}
        own["mixer.in_proj.weight"] = normal(2 * inner, m.dim, scale=m.dim**-0.5)
        own["mixer.out_proj.weight"] = normal(m.dim, inner, scale=inner**-0.5)
        for b in ("", "_b"):
            own[f"mixer.conv1d{b}.weight"] = normal(inner, 1, m.taps, scale=0.5)
            own[f"mixer.conv1d{b}.bias"] = normal(inner, scale=0.1)
            own[f"mixer.x_proj{b}.weight"] = normal(rank + 2 * m.states, inner, scale=inner**-0.5)
            own[f"mixer.dt_proj{b}.weight"] = normal(inner, rank, scale=rank**-0.5)
            own[f"mixer.dt_proj{b}.bias"] = normal(inner) - 3
            own[f"mixer.A{b}_log"] = normal(inner, m.states)
            own[f"mixer.D{b}"] = normal(inner)
        if m.family.startswith("fastvim"):
            own["mixer.layernorm.weight"] = 1 + normal(inner, scale=0.1)
            own["mixer.layernorm.bias"] = normal(inner, scale=0.1)
        state |= {f"layers.{layer}.{key}": value for key, value in own.items()}
    if m.family == "fastvim-mae":
        del state["head.weight"], state["head.bias"]
        state["mask_token"] = normal(1, 1, 16)
        state["decoder_norm.weight"] = normal(16)
    if "rope" in m.family:
        state["rope.freqs_cos"], state["rope.freqs_sin"] = rotation(m.dim, m.side, m.side)
    return state


def rotation(dim: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    angles = torch.zeros(rows * columns, dim, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            for channel in range(dim):
                half, within = divmod(channel, dim // 2)
                at = (column / columns if half else row / rows) * 14
                angles[row * columns + column, channel] = at * 10000 ** (
                    -2 * (within // 2) / (dim // 2)
                )
    return angles.cos().float(), angles.sin().float()


@dataclass(frozen=True)
class Expected:
    """Arrays (B, L, D), and per block (B, D); special and patches: indices of tokens."""

    tokens: Tensor
    blocks: list[Tensor]
    special: list[int]
    features: Tensor | None


def expected(m: Member, state: State, pixels: Tensor) -> Expected:
    w = {key: value.double() for key, value in state.items()}
    grid = F.conv2d(
        pixels.double(), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], m.stride
    )
    rows, columns = grid.shape[2:]
    patches = grid.flatten(2).transpose(1, 2)
    order = placed(m, rows * columns)
    positions, special = rows_of_positions(m, w, rows, columns)
    x = patches + positions
    if m.special:
        x = torch.cat([x, (w["cls_token"] + special).expand(len(x), -1, -1)], dim=1)[:, order]
    at = [place for place, source in enumerate(order) if source >= rows * columns]
    tables = [t.double() for t in rotation(m.dim, rows, columns)] if "rope" in m.family else None
    residual: Tensor | None = None
    blocks = []
    for layer in range(m.depth):
        own = {
            key.removeprefix(f"layers.{layer}."): value
            for key, value in w.items()
            if key.startswith(f"layers.{layer}.")
        }
        if tables:
            x = rotated(x, *tables)
            residual = None if residual is None else rotated(residual, *tables)
        residual = x if residual is None else residual + x
        x = mixed(m, own, rms(residual) * own["norm.weight"])
        blocks.append((residual + x).mean(dim=1))
    assert residual is not None
    tokens = rms(residual + x) * w["norm_f.weight"]
    return Expected(tokens, blocks, at, features_of(m, w, tokens, at))


def placed(m: Member, patches: int) -> list[int]:
    """Sources of the tokens in sequence: patches by number, then special ones behind them."""
    if m.place == "registers":
        run = patches // (m.registers + 1)
        order: list[int] = []
        for register in range(m.registers):
            order += [*range(register * run, (register + 1) * run), patches + register]
        return [*order, *range(m.registers * run, patches)]
    own = [patches] if m.special else []
    at = patches // 2 if m.place == "middle" else 0
    return [*range(at), *own, *range(at, patches)]


def rows_of_positions(m: Member, w: State, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    table = w["pos_embed"]
    count = m.side**2
    if m.place == "registers":
        own, special = table, w["pos_embed_cls"]
    elif not m.special:
        own, special = table, table[:, :0]
    else:
        first = m.place == "first" or m.family == "fastvim-mae"
        at = 0 if first else count // 2
        own, special = torch.cat([table[:, :at], table[:, at + 1 :]], dim=1), table[:, at : at + 1]
    if (rows, columns) != (m.side, m.side):
        square = own.reshape(1, m.side, m.side, m.dim).permute(0, 3, 1, 2)
        own = F.interpolate(square, (rows, columns), mode="bicubic", align_corners=False)
        own = own.flatten(2).transpose(1, 2)
    return own, special


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first = x.shape[1] - len(cos)
    out = x.clone()
    even, odd = x[:, first:, ::2], x[:, first:, 1::2]
    out[:, first:, ::2] = even * cos[:, ::2] - odd * sin[:, ::2]
    out[:, first:, 1::2] = odd * cos[:, 1::2] + even * sin[:, 1::2]
    return out


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()


def mixed(m: Member, w: State, x: Tensor) -> Tensor:
    u, z = (x @ w["mixer.in_proj.weight"].T).chunk(2, dim=-1)
    both = scanned(m, w, "", u) + scanned(m, w, "_b", u.flip(1)).flip(1)
    y = both if m.summed else both / 2
    if m.family.startswith("fastvim"):
        y = F.layer_norm(
            y, y.shape[-1:], w["mixer.layernorm.weight"], w["mixer.layernorm.bias"], 1e-5
        )
    return (y * F.silu(z)) @ w["mixer.out_proj.weight"].T


def scanned(m: Member, w: State, b: str, u: Tensor) -> Tensor:
    padded = F.pad(u.transpose(1, 2), (m.taps - 1, 0))
    u = F.conv1d(
        padded, w[f"mixer.conv1d{b}.weight"], w[f"mixer.conv1d{b}.bias"], groups=u.shape[2]
    )
    u = F.silu(u).transpose(1, 2)
    rank = -(-m.dim // 16)
    x = u @ w[f"mixer.x_proj{b}.weight"].T
    step, into, out = x[..., :rank], x[..., rank : rank + m.states], x[..., rank + m.states :]
    delta = F.softplus(step @ w[f"mixer.dt_proj{b}.weight"].T + w[f"mixer.dt_proj{b}.bias"])
    decay = (delta[..., None] * -w[f"mixer.A{b}_log"].exp()).exp()
    driven = (delta * u)[..., None] * into[:, :, None, :]
    h, ys = torch.zeros_like(decay[:, 0]), []
    for t in range(u.shape[1]):
        h = decay[:, t] * h + driven[:, t]
        ys.append((h * out[:, t, None, :]).sum(-1))
    return torch.stack(ys, dim=1) + u * w[f"mixer.D{b}"]


def features_of(m: Member, w: State, tokens: Tensor, at: list[int]) -> Tensor | None:
    if m.place == "registers":
        if m.reduction == 1:
            return tokens[:, at].flatten(1)
        return rms((tokens[:, at] @ w["neck.weight"].T).flatten(1)) * w["norm_neck.weight"]
    if m.family == "fastvim-mae":
        return None
    return tokens[:, at[0]] if at else tokens.mean(dim=1)


def check(m: Member, seed: int, folder: Path) -> None:
    """Save, load and compare all that is served, at the trained size and at another."""
    state = weights(m, seed)
    path = folder / "x.pth"
    content: dict[str, Any] = {"model": state, "args": {"input_size": m.size}}
    torch.save(content, path)
    model = load_model("mine", f"{m.family}:{path}", device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for grid in ((m.side, m.side), (m.side + 1, max(1, m.side - 1))):
        shape = [(count - 1) * m.stride + m.patch for count in grid]
        pixels = torch.randn(2, m.channels, *shape, generator=generator)
        right = expected(m, state, pixels)
        total = right.tokens.shape[1]
        patches = [i for i in range(total) if i not in right.special]
        answers = {
            "tokens": right.tokens,
            "mean": right.tokens.mean(1),
            "max": right.tokens.amax(1),
            "patch-mean": right.tokens[:, patches].mean(1),
        }
        if right.features is not None:
            answers["features"] = right.features
        if m.place == "registers":
            answers["registers"] = right.tokens[:, right.special].mean(1)
        elif right.special:
            answers["cls"] = right.tokens[:, right.special[0]]
        assert set(answers) == set(model.info.poolings)
        for pooling, answer in answers.items():
            found = model.embed(pixels.numpy(), pooling)
            assert relative_l2(found, answer) < BAR, (m, pooling, grid)
            found = model.embed(pixels.numpy(), pooling, exact=True)
            assert relative_l2(found, answer) < BAR, (m, pooling, grid, "exact")
        layers = model.embed_layers(pixels.numpy())
        for index, block in enumerate(right.blocks):
            assert relative_l2(layers[f"layers.{index}"], block) < BAR, (m, index, grid)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_member(family: str, tmp_path: Path) -> None:
    check(member(family, 0), 0, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("family", FAMILIES)
def test_many_random_members(family: str, tmp_path: Path) -> None:
    for seed in range(1, 26):
        check(member(family, seed), seed, tmp_path)


def test_the_bar_notices_another_form(tmp_path: Path) -> None:
    """Numbers of the neighbouring form are far off, so the comparison tells them apart."""
    m = member("vim-front", 0)
    state = weights(m, 0)
    pixels = torch.randn(1, m.channels, m.size, m.size)
    right = expected(m, state, pixels).tokens
    other = expected(Member(**{**vars(m), "family": "vim-front-sum"}), state, pixels).tokens
    assert relative_l2(np.asarray(other), right) > 1e-2
