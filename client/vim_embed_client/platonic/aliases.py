"""The names that the host's `--model` learns, and the models behind them. Plain data."""

from __future__ import annotations

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


def named_by_alias(model: str, size: str, alias: str | None) -> str:
    """The model that `alias` means: `model`, unless that is one of the other family.

    With `vim-proxy`, hustvl/Vim-tiny-midclstok and vim-tiny stand for the proxy of their size,
    and with `vim` a proxy's name for the Vim. Weights of one's own keep their name.
    """
    if alias not in ALIASES:
        return model
    families = {False: _VIM, True: _PROXIES}
    proxy = alias.endswith("-proxy")
    others = families[not proxy]
    short = [f"vim-{each}{'' if proxy else '-proxy'}" for each in SIZES]
    for names in (others, short):
        if model in names:
            place = SIZES.index(size) if size in SIZES else names.index(model)
            return families[proxy][place]
    return model
