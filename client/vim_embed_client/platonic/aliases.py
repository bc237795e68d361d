"""The names that the host's `--model` learns, and the models behind them. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

Names = Mapping[str, str]  # of each size, the model's name

SIZES = ("tiny", "small", "base")
_VIM = tuple(f"hustvl/Vim-{size}-midclstok" for size in SIZES)
_PROXIES = (
    "google/vit-base-patch16-224-in21k",
    "google/vit-large-patch16-224-in21k",
    "google/vit-huge-patch14-224-in21k",
)

# alias -> model name of each of SIZES; "remote" aliases go over HTTP
ALIASES = {
    "vim": _VIM,
    "vim-proxy": _PROXIES,
    "vim-remote": _VIM,
    "vim-remote-proxy": _PROXIES,
}


class Twin(NamedTuple):
    """How a model of the host's own is computed by a service.

    pooling: the service's name of what the host makes of the final tokens. families: what the
    service may say that the model is (`family` of `GET /models`).
    """

    pooling: str
    families: tuple[str, ...]


# The host's alias -> its remote twin, `{alias}-remote`. Sizes and names come from the host's own
# tables, which differ among its versions.
TWINS = {
    "vit": Twin("patch-mean", ("vit",)),
    "dino": Twin("cls", ("dinov2", "dinov2_with_registers")),
    "dinov3": Twin("cls", ("dinov3_vit", "dinov3_convnext")),
    "convnext": Twin("mean", ("convnext", "convnextv2")),
    "ijepa": Twin("mean", ("ijepa",)),
    "vit-mae": Twin("patch-mean", ("vit_mae",)),
    "clip": Twin("features", ("clip",)),
    "hiera": Twin("mean", ("hiera",)),
}


def twin_alias(host_alias: str) -> str:
    """The alias of the remote twin of one of the host's models: `dino-remote`."""
    return f"{host_alias}-remote"


def with_single_sizes(alias: str, names: Names) -> dict[str, Names]:
    """An alias with all its sizes, and one for each size: `vim-remote`, `vim-remote-tiny`, …"""
    return {alias: names} | {f"{alias}-{size}": {size: name} for size, name in names.items()}


def own_aliases() -> dict[str, Names]:
    """All aliases of Vim and the proxies: alias -> size -> model name."""
    found: dict[str, Names] = {}
    for alias, names in ALIASES.items():
        found |= with_single_sizes(alias, dict(zip(SIZES, names, strict=True)))
    return found


def twin_aliases(host_models: Mapping[str, Names]) -> dict[str, Names]:
    """All aliases of the twins of some of the host's models, given as alias -> size -> name."""
    found: dict[str, Names] = {}
    for alias, names in host_models.items():
        found |= with_single_sizes(twin_alias(alias), names)
    return found


def served_name(model: str) -> str:
    """What a service that is to serve a repository of the Hub calls it: the last part."""
    return model.rpartition("/")[2]


def serve_argument(model: str) -> str:
    """The `--model` argument by which a service serves a model of the host's tables."""
    from_catalogue = any(model in names for names in ALIASES.values())
    return model if from_catalogue else f"{served_name(model)}=hf:{model}"


def named_by_alias(model: str, size: str, alias: str | None) -> str:
    """The model that `alias` means: `model`, unless that is one of the other family.

    With `vim-proxy`, hustvl/Vim-tiny-midclstok and vim-tiny stand for the proxy of their size,
    and with `vim` a proxy's name for the Vim. Weights of one's own keep their name.
    """
    family = _family(alias or "")
    if family not in ALIASES:
        return model
    families = {False: _VIM, True: _PROXIES}
    proxy = family.endswith("-proxy")
    others = families[not proxy]
    short = [f"vim-{each}{'' if proxy else '-proxy'}" for each in SIZES]
    for names in (others, short):
        if model in names:
            place = SIZES.index(size) if size in SIZES else names.index(model)
            return families[proxy][place]
    return model


def _family(alias: str) -> str:
    """`vim-proxy` of `vim-proxy-tiny`; an alias with all sizes is itself."""
    stem, _, size = alias.rpartition("-")
    return stem if size in SIZES else alias
