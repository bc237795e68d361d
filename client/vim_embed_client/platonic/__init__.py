"""platonic-universe's experiments on vim-embed: `--model vim-remote`, `--model vim`.

`vim-embed attach` makes the host import this package and call `register_aliases`. Importing it
loads neither torch nor the service package; an adapter's `load()` does what it needs.
"""

from __future__ import annotations

from collections.abc import Callable

from vim_embed_client.platonic.adapter import (
    ADAPTERS,
    InProcessAdapter,
    RemoteAdapter,
    VimAdapter,
)
from vim_embed_client.platonic.aliases import ALIASES

__all__ = ["ALIASES", "InProcessAdapter", "RemoteAdapter", "VimAdapter", "register_aliases"]


def register_aliases(register_adapter: Callable[[str, type], None]) -> None:
    """Register an adapter for each alias; to be given the host's own `register_adapter`."""
    for adapter in ADAPTERS:
        assert adapter.own_alias is not None
        register_adapter(adapter.own_alias, adapter)
