"""vim-embed service: native Vision Mamba and ViT proxies behind a batched HTTP API.

In process: `load_model("vim-tiny").embed(pixel_values)`.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vim_embed.inference.embedder import Embedder
    from vim_embed.weights.load import load_model

__all__ = ["Embedder", "__version__", "load_model"]
__version__ = version("vim-embed")


def __getattr__(name: str) -> Any:
    if name == "load_model":
        from vim_embed.weights.load import load_model

        return load_model
    if name == "Embedder":
        from vim_embed.inference.embedder import Embedder

        return Embedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
