"""Whether what a user calls a file of embeddings contradicts what the file says of itself.

A label may be any name: "ours", "baseline". It contradicts its file where a known model is named
in it and the file is of another one; surveys likewise. Known are the models that a service has
names for, the surveys of platonic-universe, and what the files at hand say that they are of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.model_names import HUB_IDS, MODEL_NAMES
from vim_embed_pixels.surveys import SURVEYS

_Names = Mapping[str, str]  # from how a model or survey may be called to its name


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A file, and the model and survey that a user says it is of; empty where they say nothing."""

    file: EmbeddingFile
    model: str
    survey: str = ""


def contradictions(labelled: Sequence[Labelled]) -> list[str]:
    """Of each label that contradicts its file, once: `a.npy is labelled vim-tiny, but its model is
    vim-micro`.
    """
    models = {one.file.model for one in labelled}
    surveys = {one.file.survey for one in labelled}
    found = []
    for one in labelled:
        name = one.file.label
        if _contradicts(one.model, one.file.model, _MODELS, models):
            found.append(f"{name} is labelled {one.model}, but its model is {one.file.model}")
        if _contradicts(one.survey, one.file.survey, _SURVEYS, surveys):
            found.append(f"{name} is labelled {one.survey}, but its survey is {one.file.survey}")
    return list(dict.fromkeys(found))


def _contradicts(label: str, told: str, public: _Names, at_hand: set[str]) -> bool:
    """Whether the label names something, but not what the file tells.

    Weights of one's own such as vim-tiny-tuned may go by the public name that theirs begins with,
    unless a file at hand is of that model.
    """
    if not told:
        return False
    own = {_folded(name): _folded(name) for name in at_hand if name}
    named = _named_in(label, {**own, **public})
    right = {public.get(_folded(told), _folded(told))}
    if _folded(told) not in public:
        right |= _named_in(told, public) - own.keys()
    return bool(named) and not named & right


def _named_in(text: str, names: _Names) -> set[str]:
    """What is named in a text, however it is spelt there: vim-tiny in `ViM_Tiny` and `vimtiny-2`.

    Of names that begin alike, the longest: vim-tiny-plus is not vim-tiny.
    """
    by_letters = {name.replace("-", ""): meant for name, meant in names.items()}
    longest_first = sorted(by_letters, key=len, reverse=True)
    form = "|".join("-?".join(map(re.escape, letters)) for letters in longest_first)
    found = re.finditer(rf"(?<![a-z0-9])(?:{form})(?![a-z0-9])", _folded(text))
    return {by_letters[match.group().replace("-", "")] for match in found}


def _folded(name: str) -> str:
    """In small letters, with a hyphen for all that stands between words; slashes stay."""
    return re.sub(r"[^a-z0-9/]+", "-", name.lower())


def _of_models() -> dict[str, str]:
    """Names, Hub ids, and these without their owner where that is no other model's name."""
    ids = {_folded(hub_id): name for hub_id, name in HUB_IDS.items()}
    parts = {hub_id.rpartition("/")[2]: name for hub_id, name in ids.items()}
    return parts | ids | {name: name for name in MODEL_NAMES}


_MODELS = _of_models()
_SURVEYS = {name: name for name in SURVEYS}
