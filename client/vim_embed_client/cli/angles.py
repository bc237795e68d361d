"""Angles on the command line."""

from __future__ import annotations

import click

from vim_embed_client.errors import ConfigurationError
from vim_embed_client.sky.angles import arcsec


def angle(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """An option's callback: an angle with its unit, in arcseconds."""
    if value is None:
        return None
    try:
        return arcsec(value)
    except ConfigurationError as error:
        raise click.BadParameter(error.message) from None
