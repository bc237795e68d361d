"""platonic-universe's experiments on vim-embed: `--model vim-remote`, `--model vim`.

`vim-embed attach` makes the host import this package and call `register_aliases`. Importing it
loads neither torch nor the service package; an adapter's `load()` does what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vim_embed_client.platonic.adapter import (
    ADAPTERS,
    InProcessAdapter,
    RemoteAdapter,
    VimAdapter,
    for_one_size,
    twin_of,
)
from vim_embed_client.platonic.aliases import ALIASES, SIZES, Names, twin_alias

__all__ = ["ALIASES", "InProcessAdapter", "RemoteAdapter", "VimAdapter", "register_aliases"]


def register_aliases(
    register_adapter: Callable[[str, type], None], twins: Mapping[str, Names] | None = None
) -> None:
    """Register an adapter for each alias; to be given the host's own `register_adapter`.

    twins: of which of the host's models remote twins are wanted, with the names of their sizes.
    """
    for adapter in ADAPTERS:
        assert adapter.own_alias is not None
        register_adapter(adapter.own_alias, adapter)
        for size in SIZES:
            alias = f"{adapter.own_alias}-{size}"
            register_adapter(alias, for_one_size(adapter, alias))
    for host_alias, names in (twins or {}).items():
        alias = twin_alias(host_alias)
        register_adapter(alias, twin_of(host_alias, alias, names))
        for size in names:
            register_adapter(f"{alias}-{size}", twin_of(host_alias, f"{alias}-{size}", {}))
