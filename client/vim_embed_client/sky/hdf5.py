"""h5py, where it is installed."""

from __future__ import annotations

from typing import Any

from vim_embed_client.errors import ConfigurationError


def h5py() -> Any:
    """The module. Raises ConfigurationError where it is not installed."""
    try:
        import h5py as found
    except ModuleNotFoundError:
        raise ConfigurationError('HDF5 needs h5py: pip install "vim-embed[astro]"') from None
    return found
