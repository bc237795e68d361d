"""The models that a service knows by name. Plain data, as the client never imports the service."""

from __future__ import annotations

MODEL_NAMES = (
    "vim-tiny", "vim-small", "vim-base", "vim-tiny-plus", "vim-small-plus", "vim-micro",
    "vim-tiny-rope", "vim-tiny-proxy", "vim-small-proxy", "vim-base-proxy",
    "videomamba-tiny", "videomamba-small", "videomamba-middle", "videomamba-base",
    "videomamba-tiny-448", "videomamba-small-448", "videomamba-middle-448",
    "videomamba-tiny-576", "videomamba-small-576", "videomamba-middle-576",
    "mamba-reg-tiny", "mamba-reg-small", "mamba-reg-base", "mamba-reg-large",
    "fastvim-base", "fastvim-large", "fastvim-mae-base", "fastvim-mae-large",
)  # fmt: skip

# Of the Hub, the repositories that stand for one of them alone.
HUB_IDS = {
    "hustvl/Vim-tiny-midclstok": "vim-tiny",
    "hustvl/Vim-small-midclstok": "vim-small",
    "hustvl/Vim-base-midclstok": "vim-base",
    "hustvl/Vim-tiny": "vim-tiny-rope",
    "google/vit-base-patch16-224-in21k": "vim-tiny-proxy",
    "google/vit-large-patch16-224-in21k": "vim-small-proxy",
    "google/vit-huge-patch14-224-in21k": "vim-base-proxy",
}
