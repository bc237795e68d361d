"""Trains `vim-micro` by two-view contrastive learning without labels.

    python -m training.train -o vim-micro.safetensors

InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) as SimCLR has it (Chen et al. 2020,
arXiv:2002.05709): the view from the ground is to be told from those of all other sources of the
batch by the view from space, and the other way round. README.md has the whole recipe.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from training.data import Patches, hubble_patches, regions, simulated_patches
from training.scan import TrainingOps
from training.views import ground_view, normalised, space_view
from vim_embed.models.vim import Vim, VimConfig, init_random

CONFIG = VimConfig(dim=128, depth=8, image_size=64, patch_size=8, stride=8)
# As hustvl's training script would name it, so that the loader knows the family.
NAME = "vim_micro_patch8_stride8_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides on the weights, beside torch and the device.

    pairs: of a step; a share `simulated` of them is of simulated galaxies, of which there are
    `simulations`.
    """

    steps: int = 5000
    pairs: int = 256
    simulated: float = 0.5
    simulations: int = 6000
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 200
    temperature: float = 0.1
    seed: int = 0


class Head(nn.Module):
    """Projects the mean over tokens to where views are compared; not part of the model."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, 128))

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
        self.model = Vim(self.config, TrainingOps())
        init_random(self.model, self.recipe.seed)
        self.head = Head(self.config.dim)
        self.model.to(device).train()
        self.head.to(device)
        self.generator = Generator(device).manual_seed(self.recipe.seed)
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=self.recipe.learning_rate, betas=(0.9, 0.98)
        )

    def step(self, number: int) -> Tensor:
        """One step; the loss, still on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(number)
        patches = self._drawn()
        views = torch.cat(
            [
                make(patches, self.config.image_size, self.generator)
                for make in (space_view, ground_view)
            ]
        )
        space, ground = self.head(self.model(normalised(views))).chunk(2)
        loss = info_nce(space, ground, self.recipe.temperature)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*self.model.parameters(), *self.head.parameters()], 1.0)
        self.optimizer.step()
        return loss.detach()

    def learning_rate(self, number: int) -> float:
        """A linear warm-up, then half a cosine."""
        recipe = self.recipe
        if number < recipe.warmup:
            return recipe.learning_rate * (number + 1) / recipe.warmup
        done = (number - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def _drawn(self) -> Tensor:
        """(B, 3, P, P): no source twice, else it would be told from itself."""
        of_both = round(self.recipe.pairs * self.recipe.simulated) if len(self.simulated) else 0
        counts = (self.real, self.recipe.pairs - of_both), (self.simulated, of_both)
        return torch.cat([
            source[torch.randperm(len(source), generator=self.generator, device=source.device)[:n]]
            for source, n in counts
        ])  # fmt: skip

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
    """As float16 safetensors with hustvl's keys; the metadata tells model and recipe."""
    tensors = {
        name: tensor.detach().cpu().to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, path, {"model": NAME, "recipe": json.dumps(asdict(recipe))})


def patches(recipe: Recipe) -> tuple[Patches, Patches]:
    """Of the picture's trained region, and simulated."""
    real = hubble_patches(regions().trained)
    if not recipe.simulated:
        return real, real[:0]
    return real, simulated_patches(recipe.simulations, recipe.seed)


def train(
    recipe: Recipe, device: torch.device, *, config: VimConfig = CONFIG, minutes: float = math.inf
) -> tuple[Vim, Recipe]:
    """The trained model, and the recipe with the steps that there was time for.

    minutes: of the clock, after which training ends; the schedule is then cut short.
    """
    torch.set_float32_matmul_precision("high")
    real, simulated = (torch.from_numpy(np.array(p)).to(device) for p in patches(recipe))
    trainer = Trainer(recipe, real, simulated, config)
    begin, done = time.monotonic(), 0
    for number in range(recipe.steps):
        loss = trainer.step(number)
        done = number + 1
        if done % 50 == 0 or done == recipe.steps:
            seconds = time.monotonic() - begin
            print(f"step {done}: loss {float(loss):.3f}, {seconds / done:.3f} s a step", flush=True)
            if seconds > 60 * minutes:
                break
    return trainer.model.eval(), replace(recipe, steps=done)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("vim-micro.safetensors"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end then at the latest")
    defaults = Recipe()
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    recipe = Recipe(**{name: given[name] for name in asdict(defaults)})
    model, recipe = train(recipe, torch.device(given["device"]), minutes=given["minutes"])
    save(model, given["output"], recipe)
    print(f"Written: {given['output']} ({given['output'].stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
