"""Computes with the service package, in this process and by its settings (VIM_EMBED_*)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vim_embed_client.bulk.sources.options import ReadOptions
from vim_embed_client.errors import InputError, ServiceNotInstalledError
from vim_embed_client.formats import Array

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """attention, norms: (n, blocks, L). pixels: (n, C, H, W) as the model got them. patches:
    indices of the patches among the L tokens, in row-major order of `grid`. token: whose attention.
    """

    model: str
    weights: str
    random_weights: bool
    ids: Sequence[str]
    pixels: Sequence[Array]
    attention: Floats
    norms: Floats
    grid: tuple[int, int]
    patches: tuple[int, ...]
    token: int
    token_name: str

    def as_arrays(self) -> dict[str, Any]:
        """For an .npz file."""
        return {
            "attention": self.attention,
            "norms": self.norms,
            "ids": np.array(self.ids),
            "grid": np.array(self.grid),
            "patches": np.array(self.patches),
            "token": np.array(self.token),
            "model": np.array(self.model),
            "weights": np.array(self.weights),
        }


def explain_images(
    paths: Sequence[str],
    read_options: ReadOptions,
    *,
    model: str,
    patch: tuple[int, int] | None = None,
    rows: int,
    leave_out: Sequence[Path] = (),
) -> Explanation:
    """Of up to `rows` images (the packaged sample for no paths), evenly chosen.

    model: as of `vim-embed-server serve`. patch: row and column of the token that looks; None: the
    class token. leave_out: outputs, which are no images. Raises ServiceNotInstalledError,
    InputError, or the service package's own errors.
    """
    try:
        import torch

        from vim_embed.certify.images import read_images, sample_images
        from vim_embed.inference.hidden_attention import explain
        from vim_embed.models.vim import Vim
        from vim_embed.settings import Settings
        from vim_embed.types.devices import resolve_devices
        from vim_embed.weights.catalogue import parse_model
        from vim_embed.weights.load import load_entry
    except ModuleNotFoundError as error:
        raise ServiceNotInstalledError(
            f'explain runs the model here and needs {error.name}: pip install "vim-embed[service]"'
        ) from None
    settings = Settings()
    embedder = load_entry(
        parse_model(model),
        device=resolve_devices(settings.device)[0],
        dtype=torch.float32,
        backend="torch",
        random_weights=settings.random_weights,
        exact_rows=1,
    )
    vim, info = embedder.module, embedder.info
    if not isinstance(vim, Vim):
        raise InputError(f"{model} is no Vim: only selective scans have a hidden attention")
    if paths:
        images = read_images(paths, read_options, info, rows, leave_out=leave_out)
    else:
        images = sample_images(info, rows)
    layout = info.tokens
    assert layout is not None
    token, name = _token(layout.cls, layout.patches, layout.grid, patch)
    found = []
    for _, block in images.batches(8):
        pixels = torch.from_numpy(block).to(embedder.device)
        ready = embedder.normalised(pixels) if pixels.dtype == torch.uint8 else pixels.float()
        found.append(explain(vim, ready, token))
    return Explanation(
        model=info.name,
        weights=info.weights.digest,
        random_weights=info.weights.random,
        ids=images.ids,
        pixels=images.pixels,
        attention=torch.cat([one.attention for one in found]).cpu().numpy(),
        norms=torch.cat([one.norms for one in found]).cpu().numpy(),
        grid=layout.grid,
        patches=layout.patches,
        token=token,
        token_name=name,
    )


def _token(
    cls: int | None,
    patches: tuple[int, ...],
    grid: tuple[int, int],
    patch: tuple[int, int] | None,
) -> tuple[int, str]:
    if patch is not None:
        row, column = patch
        if row >= grid[0] or column >= grid[1]:
            raise InputError(f"--patch {row},{column} is outside the {grid[0]}×{grid[1]} patches")
        return patches[row * grid[1] + column], f"patch {row},{column}"
    if cls is None:
        raise InputError("this model has no class token: name a patch with --patch ROW,COLUMN")
    return cls, "class token"
