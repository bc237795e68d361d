"""The words that a `--model` argument may have, and the shapes of the models that have a name.

Read by the command line, whose completion and lists are to be there at once: without torch.
"""

from __future__ import annotations

from itertools import product
from typing import Literal

# Which copy of the weights, where a checkpoint has an averaged one too.
Copy = Literal["ema", "plain"]


def vim_name(cls: str, *, averaged: bool, rope: bool) -> str:
    """`vim` is the released form; what differs from it is in the name."""
    place = {"middle": "", "first": "-front", "none": "-nocls"}[cls]
    return "vim" + ("-rope" if rope else "") + place + ("" if averaged else "-sum")


# hustvl's switches (rope, class token, directions averaged), all that go together by the name of
# the form: rope and a class token in the middle do not.
VIM_FORMS = {
    vim_name(cls, averaged=averaged, rope=rope): (rope, cls, averaged)
    for rope, cls, averaged in product((False, True), ("middle", "first", "none"), (True, False))
    if not (rope and cls == "middle")
}

_WIDTHS = {"tiny": 192, "small": 384, "middle": 576, "base": 768}


def _videomamba_sizes() -> dict[str, dict[str, int]]:
    sizes = {}
    for size in ("tiny", "small", "middle", "base"):
        shape = {"dim": _WIDTHS[size], "depth": 32 if size == "middle" else 24}
        for side in (224,) if size == "base" else (224, 448, 576):
            name = f"videomamba-{size}" + (f"-{side}" if side != 224 else "")
            sizes[name] = {**shape, "image_size": side}
    return sizes


# Of every family, the models that have a name, and their shapes as VimConfig has them.
SIZES: dict[str, dict[str, dict[str, int]]] = {
    **{form: {} for form in VIM_FORMS},
    "vim": {
        "vim-tiny": {"dim": 192, "depth": 24},
        "vim-small": {"dim": 384, "depth": 24},
        "vim-base": {"dim": 768, "depth": 24},
        "vim-tiny-plus": {"dim": 192, "depth": 24, "stride": 8},
        "vim-small-plus": {"dim": 384, "depth": 24, "stride": 8},
        "vim-micro": {"dim": 128, "depth": 4, "image_size": 48, "patch_size": 8, "stride": 8},
    },
    "vim-rope-front-sum": {"vim-tiny-rope": {"dim": 192, "depth": 24}},
    "videomamba": _videomamba_sizes(),
    "mamba-reg": {
        "mamba-reg-tiny": {"dim": 192, "depth": 24, "registers": 12},
        "mamba-reg-small": {"dim": 384, "depth": 24, "registers": 12, "reduction": 2},
        "mamba-reg-base": {"dim": 768, "depth": 24, "registers": 12, "reduction": 4},
        "mamba-reg-large": {"dim": 1024, "depth": 48, "registers": 16, "reduction": 8},
    },
    "fastvim": {
        "fastvim-base": {"dim": 768, "depth": 24},
        "fastvim-large": {"dim": 1024, "depth": 48},
    },
    "fastvim-mae": {
        "fastvim-mae-base": {"dim": 768, "depth": 24},
        "fastvim-mae-large": {"dim": 1024, "depth": 48},
    },
}
