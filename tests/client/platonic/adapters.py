"""What tests of the adapters have in common."""

from __future__ import annotations

import torch

from client.fake_service import SIZE
from vim_embed_client.platonic import RemoteAdapter

TINY = "hustvl/Vim-tiny-midclstok"


def rgb(rows: int, size: int = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(0, 256, (rows, 3, size, size), generator=generator, dtype=torch.uint8)


def loaded() -> RemoteAdapter:
    adapter = RemoteAdapter("vim-tiny", "tiny", alias="vim-remote")
    adapter.load()
    return adapter
