"""The models that have a name, and how a `--model` argument is read.

A user's own checkpoint is one more entry: `NAME=PATH` or `NAME=org/repo[@revision][:file]`, with
words in front where the file does not tell them: `NAME=FAMILY:PATH`, `NAME=ema:PATH`,
`NAME=FAMILY+plain:org/repo`; encoders of transformers are `NAME=hf:org/repo[@revision]` or
`NAME=hf:FOLDER`. A name that ends in -float16 or -bfloat16 is the same model computed
in that dtype.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from vim_embed.weights.names import SIZES, Copy

_HUB = re.compile(r"^(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^:\s]+))?(:(?P<file>\S+))?$")
_WEIGHT_SUFFIXES = {".pth", ".pt", ".bin", ".safetensors"}
_WORDS = re.compile(r"^(?P<words>[a-z][a-z+-]*):(?P<source>.+)$")
_TWIN = re.compile(r"^(?P<base>.+)-(?P<dtype>float16|bfloat16)$")
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")


class ModelArgumentError(ValueError):
    """A `--model` argument that cannot be read; the message names the forms that can."""


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """A model to load: from `path` if given, else from `repo` at `revision` on the Hub, else from
    the file `packaged` in this package.

    kind: "vim", "vit", or None to find out from what is there. file: the file within the
    repository. architecture: the catalogue name whose shapes the weights must have. dtype: of
    the computation, where the name asks for one (vim-tiny-float16). family, copy: what the user
    said of the file.
    """

    name: str
    kind: str | None = None
    repo: str | None = None
    revision: str | None = None
    file: str | None = None
    path: Path | None = None
    packaged: str | None = None
    architecture: str | None = None
    dtype: str | None = None
    family: str | None = None
    copy: Copy | None = None

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names that requests may use: the Hub id, where it stands for this entry alone."""
        known = CATALOGUE.get(self.name)
        return (known.repo,) if known and known.repo and self.name not in _OF_SHARED_REPOS else ()


def _vim(name: str, repo: str, file: str) -> CatalogueEntry:
    return CatalogueEntry(name=name, kind="vim", repo=repo, file=file, architecture=name)


def _vit(name: str, repo: str) -> CatalogueEntry:
    return CatalogueEntry(name=name, kind="vit", repo=f"google/{repo}", architecture=name)


def _videomamba(name: str) -> CatalogueEntry:
    _, size, *side = name.split("-")
    trained = {"": "224", "448": "224to448", "576": "224to448to576"}["".join(side)]
    file = f"videomamba_{size[0]}16_in1k_res{trained}.pth"
    return _vim(name, "OpenGVLab/VideoMamba", file)


def _of_your_own(name: str) -> CatalogueEntry:
    """Weights without a licence that lets anybody fetch them: from a path that the user gives."""
    return CatalogueEntry(name=name, kind="vim", architecture=name)


def _packaged(name: str) -> CatalogueEntry:
    return CatalogueEntry(name=name, kind="vim", packaged=f"{name}.safetensors", architecture=name)


_FREE = ("vim", "vim-rope-front-sum", "videomamba")

CATALOGUE: dict[str, CatalogueEntry] = {
    entry.name: entry
    for entry in (
        _vim("vim-tiny", "hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth"),
        _vim("vim-small", "hustvl/Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth"),
        _vim("vim-base", "hustvl/Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth"),
        _vim("vim-tiny-plus", "hustvl/Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth"),
        _vim("vim-small-plus", "hustvl/Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth"),
        _vit("vim-tiny-proxy", "vit-base-patch16-224-in21k"),
        _vit("vim-small-proxy", "vit-large-patch16-224-in21k"),
        _vit("vim-base-proxy", "vit-huge-patch14-224-in21k"),
        _vim("vim-tiny-rope", "hustvl/Vim-tiny", "vim_tiny_73p1.pth"),
        *map(_videomamba, SIZES["videomamba"]),
        _packaged("vim-micro"),
        *(_of_your_own(n) for family, sizes in SIZES.items() if family not in _FREE for n in sizes),
    )
}
_OF_SHARED_REPOS = {
    name for name in CATALOGUE if name.endswith("-plus") or name.startswith("videomamba-")
}


def parse_model(argument: str) -> CatalogueEntry:
    """Read `NAME`, `HubId`, `NAME=[WORDS:]PATH` or `NAME=[WORDS:]HubId[@revision][:file]`.

    Raises ModelArgumentError with the accepted forms.
    """
    name, separator, source = (part.strip() for part in argument.partition("="))
    if not separator:
        return _catalogued(name)
    if not _NAME.match(name):
        raise ModelArgumentError(
            f"{name!r} cannot name a model: use letters, digits, '.', '_' and '-', no slash"
        )
    known = _twin(name) or CATALOGUE.get(name, CatalogueEntry(name=name))
    return _with_source(known, source)


def _catalogued(name: str) -> CatalogueEntry:
    if name in CATALOGUE:
        return CATALOGUE[name]
    for entry in CATALOGUE.values():
        if name in entry.aliases:
            return entry
    twin = _twin(name)
    if twin is not None and (twin.repo or twin.packaged):
        return twin
    raise ModelArgumentError(
        f"unknown model {name!r}: use one of {', '.join(CATALOGUE)}, or name your own checkpoint "
        f"with NAME=PATH or NAME=org/repo[@revision][:file]"
    )


def _twin(name: str) -> CatalogueEntry | None:
    """A model under a name that asks for a half-precision computation; None for other names."""
    match = _TWIN.match(name)
    if match is None:
        return None
    known = CATALOGUE.get(match["base"], CatalogueEntry(name=name))
    return replace(known, name=name, dtype=match["dtype"])


def _with_source(entry: CatalogueEntry, source: str) -> CatalogueEntry:
    path = Path(source).expanduser()
    if source and path.exists():
        return replace(entry, path=path, repo=None, revision=None, file=None)
    worded = _WORDS.match(source)
    if worded is not None and not source.startswith("/"):
        return _with_source(_with_words(entry, worded["words"]), worded["source"])
    match = _HUB.match(source)
    looks_local = ":" not in source and path.suffix in _WEIGHT_SUFFIXES
    if match is None or looks_local:
        raise ModelArgumentError(
            f"{source!r} is neither an existing path nor a Hub id (org/repo[@revision][:file])"
        )
    file = match["file"] or (entry.file if match["repo"] == entry.repo else None)
    return replace(entry, repo=match["repo"], revision=match["revision"], file=file)


def _with_words(entry: CatalogueEntry, words: str) -> CatalogueEntry:
    """The entry with what stands before the colon: a family, `ema` or `plain`, or both."""
    for word in words.split("+"):
        if word == "hf":
            entry = replace(entry, kind="vit", architecture=None)
            continue
        if word in get_args(Copy):
            entry = replace(entry, copy=cast(Copy, word))
        elif word in SIZES:
            entry = replace(entry, family=word)
        else:
            raise ModelArgumentError(
                f"{word!r} before the colon is no family: use one of {', '.join(SIZES)}; hf for "
                f"an encoder of transformers; ema or plain for averaged or plain weights "
                f"(FAMILY+ema:PATH)"
            )
    return entry
