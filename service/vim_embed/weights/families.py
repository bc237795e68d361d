"""The relatives of Vim, a row each: what tells one from another, and the module that computes it.

Several have the same keys and shapes and compute something else, so that tensors alone cannot tell
them apart. Then the file's own `args.model`, its published name or the user's word decides; they
must agree, and where nothing decides, the file is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vim_embed.errors import WeightsError
from vim_embed.models.fastvim import FastVim
from vim_embed.models.mamba_reg import MambaReg
from vim_embed.models.vim import Vim, VimConfig
from vim_embed.models.vim_rope import RopeVim, rope_tables
from vim_embed.weights.names import SIZES, VIM_FORMS, vim_name

State = dict[str, Tensor]
_MIXER_NORM = "layers.0.mixer.layernorm.weight"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of checkpoint.

    name: as the user's word spells it (`--model NAME=FAMILY:PATH`). switches: what of VimConfig is
    fixed. fits: whether a state dict has this family's keys. read: what of VimConfig only this
    family's tensors tell. prepare: changes tensors into the module's own order. overlaps: whether
    there are models whose patches overlap. classifier: what the model's own classifier reads, a
    pooling; None without one.
    """

    name: str
    title: str
    module: type[Vim]
    switches: Mapping[str, Any]
    fits: Callable[[State], bool]
    read: Callable[[State], dict[str, Any]] = lambda state: {}
    prepare: Callable[[State, Path], State] = lambda state, path: state
    overlaps: bool = False
    released_alone: bool = False
    classifier: str | None = "cls"

    @property
    def sizes(self) -> Mapping[str, Mapping[str, int]]:
        """The models of the catalogue that are of this family, and their shapes."""
        return SIZES[self.name]

    def computes_as(self, other: Family) -> bool:
        return (self.module, self.switches) == (other.module, other.switches)


@dataclass(frozen=True)
class Word:
    """That somebody says which family a file is of, and perhaps its size. source: for people."""

    source: str
    family: Family
    size: str | None = None


class UncomputedForm(ValueError):
    """A name that tells its form plainly, and no module here computes it."""


def decide(state: State, words: list[Word], unread: str | None, path: Path) -> tuple[Family, str]:
    """The family of a state dict, and why. Raises WeightsError for contradictions and in doubt.

    unread: the file's `args.model`, where it is there and tells nothing.
    """
    fitting = [family for family in FAMILIES.values() if family.fits(state)]
    if not fitting:
        raise WeightsError(f"{path} is not a Vim checkpoint that is known here: {_refusal(state)}")
    words = [*words, *_tensors_say(state, fitting)]
    for word in words:
        if word.family not in fitting:
            raise WeightsError(
                f"{path}: {word.source} says {word.family.name}, but its tensors are those of "
                f"{' or '.join(family.name for family in fitting)}"
            )
        if not word.family.computes_as(words[0].family):
            raise WeightsError(
                f"{path}: {words[0].source} says {words[0].family.name}, but {word.source} says "
                f"{word.family.name}. If you are sure, save its state dict alone as safetensors "
                f"and name the family with NAME=FAMILY:PATH"
            )
    _agree_on_size(words, state, path)
    if words:
        return words[0].family, " and ".join(dict.fromkeys(word.source for word in words))
    if len(fitting) == 1:
        return fitting[0], "its tensors"
    released = [family for family in fitting if family.released_alone]
    if len(released) == 1 and unread is None:
        return released[0], "its tensors, of which no other form was released"
    names = ", ".join(family.name for family in fitting)
    doubt = (
        f"its args.model {unread!r} is no name that is known here"
        if unread
        else "nothing in it tells"
    )
    raise WeightsError(
        f"{path} may be any of {names}: their keys and shapes are the same, and {doubt}. Say which "
        f"with NAME={fitting[0].name}:PATH or another of them in its place (docs/models.md)"
    )


def published_family(name: str) -> Family | None:
    """The family whose authors publish files or repositories under such a name."""
    for pattern, family in _PUBLISHED:
        if re.search(pattern, name.lower()):
            return FAMILIES[family]
    return None


def told_family(name: str) -> Family | None:
    """The family that a training script's `args.model` tells; None where it does not.

    Of hustvl's names only those are read whose every part is known. Raises UncomputedForm.
    """
    return _hustvl(name.lower()) or published_family(name)


# How a name of any family gives its size: `vim_tiny_patch16_…`, `videomamba_s16_…`, `vim_b_…`.
_SIZED = re.compile(
    r"^(?:hustvl/)?(?:vim|videomamba|mambar|fastvim)[-_]"
    r"(?:(tiny|small|middle|base|large)|([tsmb])(?:16)?)(?=[-_.]|$)"
)
# (width, depth) of every size: the same in all families.
_SIZE_OF = {
    (192, 24): "tiny",
    (384, 24): "small",
    (576, 32): "middle",
    (768, 24): "base",
    (1024, 48): "large",
}


def told_size(name: str) -> str | None:
    """`tiny`, `small`, `middle`, `base` or `large`, where a model's or a file's name tells it."""
    match = _SIZED.match(name.lower())
    if match is None:
        return None
    letter: str | None = match[2]
    return match[1] or next(size for size in _SIZE_OF.values() if size[0] == letter)


def _agree_on_size(words: list[Word], state: State, path: Path) -> None:
    """WeightsError where two names, or a name and the tensors, are of different sizes.

    Tensors of no published size contradict none: people train small ones under the scripts' names.
    """
    said = [(word.source, word.size) for word in words if word.size]
    width = state["patch_embed.proj.weight"].shape[0]
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers."))
    if (width, depth) in _SIZE_OF:
        said.append(
            (f"the shape of its tensors ({width} wide, {depth} deep)", _SIZE_OF[width, depth])
        )
    for source, size in said:
        if size != said[0][1]:
            raise WeightsError(
                f"{path}: {said[0][0]} says {said[0][1]}, but {source} says {size}. If you are "
                f"sure of the tensors, save its state dict alone as safetensors, under a name of "
                f"your own, and name the family with NAME={words[0].family.name}:PATH"
            )


# How hustvl's names go on after the size: parts that say nothing here, and those that do.
_PLAIN_PARTS = r"patch\d+|stride\d+|\d{3}|bimambav2|final_pool_mean|abs_pos_embed"
_TELLING: dict[str, dict[str, Any]] = {
    r"with_midclstok|with_middle_cls_token": {"cls": "middle"},
    r"with_noclstok": {"cls": "none"},
    r"with_cls_token": {"cls": "first"},
    r"div2": {"averaged": True},
    r"rope_also_residual|rope": {"rope": True},
}
_HUSTVL = re.compile(rf"^vim_[a-z]+((_({_PLAIN_PARTS}|{'|'.join(_TELLING)}))*)$")
_SIZE_ALONE = re.compile(r"^vim_[a-z]+(_stride\d+)?$")


def _hustvl(name: str) -> Family | None:
    if _SIZE_ALONE.match(name):
        return FAMILIES["vim"]  # a size and no switch: the released form
    match = _HUSTVL.match(name)
    if match is None or "pos_embed" not in name:
        return None
    switches: dict[str, Any] = {"cls": "none", "averaged": False, "rope": False}
    for part, told in _TELLING.items():
        if re.search(rf"_({part})(?=_|$)", match[1]):
            switches |= told
    form = vim_name(**switches)
    if form not in FAMILIES:
        raise UncomputedForm(f"{form} (rotary positions with the class token in the middle)")
    return FAMILIES[form]


_PUBLISHED = (
    (r"^videomamba_|^opengvlab/videomamba$", "videomamba"),
    (r"^mambar_|^wangf3014/mamba-reg$", "mamba-reg"),
    (r"^hustvl/vim-(tiny|small|base)-midclstok$", "vim"),
    (r"^vim_[tsb]_midclstok_(ft_)?\d+p\d+acc\b", "vim"),
    (r"^hustvl/vim-tiny$|^vim_tiny_73p1\b", "vim-rope-front-sum"),
)


def _tensors_say(state: State, fitting: list[Family]) -> list[Word]:
    """What no other of the fitting families has: a sign, though no key of the encoder itself."""
    if FAMILIES["videomamba"] in fitting:
        if any(key.startswith("distill_head.") for key in state):
            return [Word("its distillation head", FAMILIES["videomamba"])]
        if state["patch_embed.proj.weight"].shape[0] == 576 and "layers.31.norm.weight" in state:
            return [Word("its size (576 wide, 32 deep)", FAMILIES["videomamba"])]
    if FAMILIES["fastvim-mae"] in fitting:
        if _has_decoder(state):
            return [Word("its decoder", FAMILIES["fastvim-mae"])]
        if not state["pos_embed"][:, :1].any():
            return [Word("its fixed positions (row 0 is zero)", FAMILIES["fastvim-mae"])]
    return []


def _plain(state: State) -> bool:
    """One class token or none, and no part that hustvl's released models lack."""
    foreign = ("pos_embed_cls", "rope.freqs_cos", "temporal_pos_embedding", _MIXER_NORM)
    known = not any(key in state for key in foreign)
    return known and _patches(state) and not _has_decoder(state)


def _patches(state: State) -> bool:
    return state["patch_embed.proj.weight"].ndim == 4


def _with_cls(state: State) -> bool:
    return _plain(state) and "cls_token" in state


def _without_cls(state: State) -> bool:
    return _plain(state) and "cls_token" not in state


def _has_decoder(state: State) -> bool:
    return "mask_token" in state or any(key.startswith("decoder_") for key in state)


def _has_head(state: State) -> bool:
    return any(key.startswith("head.") for key in state)


def _rope(*, cls: bool) -> Callable[[State], bool]:
    return lambda state: "rope.freqs_cos" in state and ("cls_token" in state) is cls


def _normed(*, mae: bool) -> Callable[[State], bool]:
    """A decoder is a MAE's, a head a classifier's; an encoder alone may be of either."""
    foreign = _has_head if mae else _has_decoder

    def fits(state: State) -> bool:
        return _MIXER_NORM in state and "cls_token" in state and not foreign(state)

    return fits


def _registers(state: State) -> dict[str, Any]:
    width, count = state["patch_embed.proj.weight"].shape[0], state["pos_embed_cls"].shape[1]
    neck = state.get("neck.weight")
    rows = width if neck is None else neck.shape[0]
    return {"registers": count, "reduction": max(1, width // max(1, rows))}


def _check_rope(state: State, path: Path) -> State:
    """The tables of the file are those that this module computes, or WeightsError."""
    cos = state["rope.freqs_cos"]
    side = round(cos.shape[0] ** 0.5)
    tables = zip(rope_tables(cos.shape[-1], (side, side)), ("cos", "sin"), strict=True)
    for own, name in tables:
        stored = state.get(f"rope.freqs_{name}", own[:0]).float()
        if own.shape != stored.shape or not torch.allclose(own, stored, atol=1e-3):
            raise WeightsError(f"{path} rotates by angles that are not those of hustvl's release")
    return state


def _class_row_to_the_middle(state: State, path: Path) -> State:
    """A MAE keeps the class token's position in row 0, though the token goes into the middle."""
    rows = state["pos_embed"]
    middle = (rows.shape[1] - 1) // 2
    ordered = torch.cat([rows[:, 1 : middle + 1], rows[:, :1], rows[:, middle + 1 :]], dim=1)
    return {**state, "pos_embed": ordered}


def _refusal(state: State) -> str:
    if "temporal_pos_embedding" in state or not _patches(state):
        return "it is a video model (VideoMamba's), which takes clips, not images"
    if _MIXER_NORM in state:
        return (
            "it has FastVim's mixers and no class token, so it pools tokens inside the scan, which "
            "is not computed here"
        )
    return f"a mixture of keys that no family has ({', '.join(sorted(state)[:8])}, …)"


_PLACES = {
    "middle": "class token in the middle",
    "first": "class token first",
    "none": "no class token",
}


def _vim_forms() -> list[Family]:
    forms = []
    for name, (rope, cls, averaged) in VIM_FORMS.items():
        fits = _rope(cls=cls == "first") if rope else _without_cls if cls == "none" else _with_cls
        words = [
            _PLACES[cls],
            "directions averaged" if averaged else "directions added",
            *(["rotary positions"] if rope else []),
        ]
        forms.append(
            Family(
                name=name,
                title="Vim: " + ", ".join(words),
                module=RopeVim if rope else Vim,
                switches={"cls": cls, "averaged": averaged, "rope": rope},
                fits=fits,
                prepare=_check_rope if rope else lambda state, path: state,
                overlaps=True,
                released_alone=rope and not averaged,
                classifier="mean" if cls == "none" else "cls",
            )
        )
    return forms


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *_vim_forms(),
        Family(
            name="videomamba",
            title="VideoMamba's image models",
            module=Vim,
            switches={"cls": "first", "averaged": False, "rope": False},
            fits=_with_cls,
        ),
        Family(
            name="mamba-reg",
            title="Mamba-Reg: registers through the sequence",
            module=MambaReg,
            switches={"cls": "none"},
            fits=lambda state: "pos_embed_cls" in state and _patches(state),
            read=_registers,
            classifier="features",
        ),
        Family(
            name="fastvim",
            title="FastVim's plain Vim with LayerNorm",
            module=FastVim,
            switches={"mixer_norm": True},
            fits=_normed(mae=False),
        ),
        Family(
            name="fastvim-mae",
            title="FastVim's plain Vim with LayerNorm, pretrained as a MAE",
            module=FastVim,
            switches={"mixer_norm": True},
            fits=_normed(mae=True),
            prepare=_class_row_to_the_middle,
            classifier=None,
        ),
    )
}

# Models by their catalogue name.
ARCHITECTURES: dict[str, tuple[Family, VimConfig]] = {
    name: (family, VimConfig(**{**family.switches, **size}))
    for family in FAMILIES.values()
    for name, size in family.sizes.items()
}
