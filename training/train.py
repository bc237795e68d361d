"""Trains `vim-micro` by two-view contrastive learning without labels.

    python -m training.train -o vim-micro.safetensors

InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) as SimCLR has it (Chen et al. 2020,
arXiv:2002.05709): the view from the ground is to be told from those of all other sources of the
batch by the view from space, and the other way round. Beside it is a pretext task (shape.py).
README.md has the whole recipe.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from training.chunks import Chunks
from training.data import Patches, hubble_patches, regions, simulated_patches
from training.native import training_ops
from training.shape import ellipticity, shape_loss
from training.views import alone, ground_view, normalised, shared_turns, space_view, stretches
from vim_embed.models.vim import Vim, VimConfig, init_random
from vim_embed.serving.process_tuning import keep_freed_memory
from vim_embed.types.devices import device_name

CONFIG = VimConfig(dim=128, depth=4, image_size=48, patch_size=8, stride=8)
# As hustvl's training script would name it, so that the loader knows the family.
NAME = "vim_micro_patch8_stride8_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"
_STATE = ("model", "head", "optimizer")  # of Trainer: what a checkpoint holds
CODE = 128  # numbers of a head's code
_CHUNK = 64  # images at once on a CPU

Views = tuple[Tensor, Tensor]  # (2 B, 3, S, S) as the model wants them; their ellipticity (2 B,)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides on the weights, beside torch and the device.

    pairs: of a step; a share `simulated` of them is of simulated galaxies, of which there are
    `simulations`. warmup, decay: first and last steps, in which the learning rate rises and falls.
    shared_turns: share of sources that both views show turned alike. alone: share of views without
    neighbours. stretches: how often a source is in a step, drawn out another way each time.
    shape: weight of `shape_loss` beside InfoNCE. share: of the embedding's variance that the
    ellipticity is to take. bfloat16: whether a CPU multiplies matrices of its numbers.
    """

    steps: int = 2240
    pairs: int = 128
    simulated: float = 0.25
    simulations: int = 1000
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 50
    decay: int = 448
    temperature: float = 0.1
    shared_turns: float = 1.0
    alone: float = 0.5
    stretches: int = 2
    shape: float = 1.0
    share: float = 0.01
    bfloat16: bool = True
    seed: int = 0


class Head(nn.Module):
    """Projects the mean over tokens to where views are compared; not part of the model."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, CODE))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.layers(tokens.mean(dim=1)), dim=1)


def info_nce(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Of unit vectors (B, D), row i of both being the same source; both ways, averaged."""
    logits = first @ second.t() / temperature
    right = torch.arange(len(first), device=first.device)
    return 0.5 * (F.cross_entropy(logits, right) + F.cross_entropy(logits.t(), right))


@dataclass
class Trainer:
    """Model, head and optimiser. real, simulated: patches on the device."""

    recipe: Recipe
    real: Tensor
    simulated: Tensor
    config: VimConfig = CONFIG

    def __post_init__(self) -> None:
        torch.manual_seed(self.recipe.seed)
        device = self.real.device
        self.model = Vim(self.config, training_ops(device))
        init_random(self.model, self.recipe.seed)
        self.head = Head(self.config.dim)
        self.model.to(device).train()
        self.head.to(device)
        self.parameters = [*self.model.parameters(), *self.head.parameters()]
        self.chunks = _chunks(device, self.recipe.pairs)
        self.ahead: dict[int, Future[Views]] = {}
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=self.recipe.learning_rate, betas=(0.9, 0.98)
        )

    def step(self, number: int) -> Tensor:
        """One step; the loss, still on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(number)
        coming = self.ahead.pop(number, None) or self.chunks.submit(self.views, number)
        self.ahead = {number + 1: self.chunks.submit(self.views, number + 1)}
        views, seen = coming.result()
        loss = self.chunks.gradients(
            self.encode, lambda codes: self.loss(codes, seen), views, self.parameters
        )
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return loss

    def loss(self, codes: Tensor, seen: Tensor) -> Tensor:
        """Of what `encode` gives and the views' ellipticity: all from space, then the ground."""
        recipe, (space, ground) = self.recipe, codes.chunk(2)
        total = info_nce(space[:, :CODE], ground[:, :CODE], recipe.temperature)
        for side, wanted in zip((space, ground), seen.chunk(2), strict=True):
            total = total + recipe.shape / 2 * shape_loss(side[:, CODE:], wanted, recipe.share)
        return total

    def encode(self, images: Tensor) -> Tensor:
        """Unit vectors: (B, 128) of the head, and beside them (B, D) of the embedding.

        On a CPU matrix products are of bfloat16's numbers.
        """
        on_cpu = images.device.type == "cpu"
        with torch.autocast("cpu", torch.bfloat16, enabled=on_cpu and self.recipe.bfloat16):
            tokens = self.model(images).float()
        return torch.cat([self.head(tokens), F.normalize(tokens.mean(dim=1), dim=1)], dim=1)

    def views(self, number: int) -> Views:
        """Of a step: all views from space, then all from the ground."""
        device, size = self.real.device, self.config.image_size
        generator = Generator(device).manual_seed(self.recipe.seed << 32 | number)
        patches = self._drawn(generator)
        stretch = stretches(len(patches), generator)
        turns = shared_turns(len(patches), self.recipe.shared_turns, generator)
        pair = torch.cat([
            make(alone(patches, self.recipe.alone, generator), size, generator, turn, stretch)
            for make, turn in zip((space_view, ground_view), turns, strict=True)
        ])  # fmt: skip
        return normalised(pair), ellipticity(pair)

    def learning_rate(self, number: int) -> float:
        """A linear warm-up, the same for long, and a linear decay in the last steps.

        Until the decay it is the same for any number of steps (Hu et al. 2024, arXiv:2404.06395),
        so that this can be chosen by the time that a step turns out to take.
        """
        recipe = self.recipe
        rising = (number + 1) / max(1, recipe.warmup)
        falling = (recipe.steps - number) / max(1, recipe.decay)
        return recipe.learning_rate * min(1.0, rising, falling)

    def keep(self, path: Path, done: int) -> None:
        """After `done` steps, to go on from; in one piece at any moment."""
        parts = {name: getattr(self, name).state_dict() for name in _STATE}
        partial = path.with_suffix(".partial")
        torch.save({"done": done, "recipe": asdict(self.recipe), **parts}, partial)
        os.replace(partial, path)

    def resume(self, path: Path) -> int:
        """The number of steps that are done. Raises ValueError where it is another recipe's."""
        if not path.exists():
            return 0
        kept = torch.load(path, map_location=self.real.device, weights_only=True)
        mine, its = asdict(self.recipe), kept["recipe"]
        if kept["done"] <= min(each["steps"] - each["decay"] for each in (mine, its)):
            its |= {name: mine[name] for name in ("steps", "decay")}  # they have not mattered yet
        if its != mine:
            raise ValueError(f"{path} is of another recipe: {its}; remove it, or take that")
        for name in _STATE:
            getattr(self, name).load_state_dict(kept[name])
        return int(kept["done"])

    def _drawn(self, generator: Generator) -> Tensor:
        """(B, 3, P, P): each source as often as it gets another stretch."""
        sources = self.recipe.pairs // self.recipe.stretches
        simulated = round(sources * self.recipe.simulated) if len(self.simulated) else 0
        counts = (self.real, sources - simulated), (self.simulated, simulated)
        drawn = torch.cat([
            source[torch.randperm(len(source), generator=generator, device=source.device)[:n]]
            for source, n in counts
        ])  # fmt: skip
        return drawn.repeat(self.recipe.stretches, 1, 1, 1)

    def _groups(self) -> list[dict[str, object]]:
        """Matrices decay; norms, biases, positions and the scan's own parameters do not."""
        named = [*self.model.named_parameters(), *self.head.named_parameters()]
        kept = ("A_log", "A_b_log", "cls_token", "pos_embed")
        plain = {id(p) for name, p in named if p.ndim < 2 or name.endswith(kept)}
        return [
            {"params": [p for _, p in named if id(p) not in plain],
             "weight_decay": self.recipe.weight_decay},
            {"params": [p for _, p in named if id(p) in plain], "weight_decay": 0.0},
        ]  # fmt: skip


def save(model: Vim, path: Path, recipe: Recipe) -> None:
    """As float16 safetensors with hustvl's keys; the metadata tells model, recipe and device."""
    tensors = {
        name: tensor.detach().cpu().to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    device = device_name(next(model.parameters()).device)
    metadata = {"model": NAME, "recipe": json.dumps(asdict(recipe)), "device": device}
    save_file(tensors, path, metadata)


def patches(recipe: Recipe, state: Path | None = None) -> tuple[Patches, Patches]:
    """Of the picture's trained region, and simulated: these from the folder `state`, once there."""
    real = hubble_patches(regions().trained)
    if not recipe.simulated:
        return real, real[:0]
    kept = state / f"simulated-{recipe.simulations}-{recipe.seed}.npy" if state else None
    if kept and kept.exists():
        return real, np.load(kept)
    simulated = simulated_patches(recipe.simulations, recipe.seed)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, simulated)
    return real, simulated


def train(
    recipe: Recipe,
    device: torch.device,
    *,
    config: VimConfig = CONFIG,
    minutes: float = math.inf,
    state: Path | None = None,
    every: int = 25,
) -> tuple[Vim, Recipe]:
    """The trained model, and the recipe with the steps that there was time for.

    minutes: of the clock, after which training ends; the schedule is then cut short. state: a
    folder where a killed training goes on. every: steps from one line of progress and checkpoint
    to the next.
    """
    torch.set_float32_matmul_precision("high")
    real, simulated = (torch.from_numpy(np.array(p)).to(device) for p in patches(recipe, state))
    trainer = Trainer(recipe, real, simulated, config)
    first = trainer.resume(state / "checkpoint.pt") if state else 0
    begin, done = time.monotonic(), first
    for number in range(first, recipe.steps):
        loss = trainer.step(number)
        done = number + 1
        if done % every == 0 or done == recipe.steps:
            seconds = time.monotonic() - begin
            each = seconds / (done - first)
            print(f"step {done}: loss {float(loss):.3f}, {each:.3f} s a step", flush=True)
            if state is not None:
                trainer.keep(state / "checkpoint.pt", done)
            if seconds > 60 * minutes:
                break
    return trainer.model.eval(), replace(recipe, steps=done)


def _chunks(device: torch.device, pairs: int) -> Chunks:
    """On a GPU a batch at once, on a CPU what stays in cache, on each core."""
    if device.type == "cuda":
        return Chunks(threads=1, images=2 * pairs)
    return Chunks(threads=torch.get_num_threads(), images=_CHUNK)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("vim-micro.safetensors"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end then at the latest")
    parser.add_argument("--state", type=Path, help="a folder: where a killed training goes on")
    defaults = Recipe()
    for name, value in asdict(defaults).items():
        reads: dict[str, Any] = {"type": type(value)}
        if isinstance(value, bool):
            reads = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(f"--{name.replace('_', '-')}", default=value, **reads)
    given = vars(parser.parse_args())
    recipe = Recipe(**{name: given[name] for name in asdict(defaults)})
    if given["device"] == "cpu":
        keep_freed_memory()
    model, recipe = train(
        recipe, torch.device(given["device"]), minutes=given["minutes"], state=given["state"]
    )
    save(model, given["output"], recipe)
    print(f"Written: {given['output']} ({given['output'].stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
