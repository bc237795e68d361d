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
