"""Angles as a user writes them."""

from __future__ import annotations

from typing import Any

from vim_embed_client.errors import ConfigurationError


def arcsec(text: str) -> float:
    """`6arcsec`, `6"`, `0.1arcmin`, `500mas` or `0.002deg` in arcseconds.

    Raises ConfigurationError for what is no positive angle with a unit.
    """
    units: Any = astropy("units")
    try:
        value = float(units.Quantity(text.replace('"', "arcsec")).to_value("arcsec"))
    except (ValueError, TypeError, units.UnitsError):
        value = 0.0
    if not 0 < value < 360 * 3600:
        raise ConfigurationError(f"{text!r} is no angle with a unit, such as 6arcsec or 0.1arcmin")
    return value


def astropy(module: str) -> Any:
    """A module of astropy. Raises ConfigurationError where it is not installed."""
    from importlib import import_module

    try:
        return import_module(f"astropy.{module}")
    except ModuleNotFoundError:
        raise ConfigurationError(
            'catalogues and mosaics need astropy: pip install "vim-embed[astro]"'
        ) from None
