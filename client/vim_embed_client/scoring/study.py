"""Many models and surveys: every pair of surveys scored for every model.

A study is a file of embeddings for each model and survey, as far as there is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.scoring.embedding_files import EmbeddingFile, read_embeddings
from vim_embed_client.scoring.labels import Labelled
from vim_embed_client.scoring.metrics import MetricScore, measure
from vim_embed_client.scoring.mknn import PLATONIC_K
from vim_embed_client.scoring.pairing import pair_all, usable_rows

_PLACEHOLDER = re.compile(r"\{(model|survey)\}")


@dataclass(frozen=True, kw_only=True)
class Study:
    """files: what holds the embeddings, by (model, survey)."""

    files: Mapping[tuple[str, str], str]

    @property
    def models(self) -> list[str]:
        """In the order in which they were named."""
        return list(dict.fromkeys(model for model, _ in self.files))

    @property
    def surveys(self) -> list[str]:
        """In the order in which they were named."""
        return list(dict.fromkeys(survey for _, survey in self.files))

    def pairs(self) -> list[tuple[str, str]]:
        """Every two surveys."""
        return list(combinations(self.surveys, 2))

    def missing(self) -> list[tuple[str, str]]:
        """(model, survey) that there is no file of."""
        return [(m, s) for m in self.models for s in self.surveys if (m, s) not in self.files]


@dataclass(frozen=True, kw_only=True)
class StudyScore:
    """A model's score between two surveys; files: the two, with the sources that were scored."""

    model: str
    surveys: tuple[str, str]
    score: MetricScore
    files: tuple[EmbeddingFile, EmbeddingFile]

    def labelled(self) -> list[Labelled]:
        """The two files with what the user says that they are of."""
        return [
            Labelled(file=file, model=self.model, survey=survey)
            for file, survey in zip(self.files, self.surveys, strict=True)
        ]

    def as_dict(self) -> dict[str, Any]:
        """The names and the fields of the score, for JSON and CSV."""
        first, second = self.surveys
        return {"model": self.model, "first": first, "second": second, **self.score.as_dict()}


def read_study(arguments: Sequence[str]) -> Study:
    """The files of MODEL:SURVEY=FILE, or of a pattern with {model} and {survey} in it.

    Raises ConfigurationError for an argument of another form, a pattern that fits no file, and a
    model and survey that stand for two files.
    """
    files: dict[tuple[str, str], str] = {}
    for argument in arguments:
        for key, path in _found(argument):
            if files.setdefault(key, path) != path:
                raise ConfigurationError(
                    f"{key[0]} on {key[1]} stands for {files[key]} and {path}: give one of them"
                )
    study = Study(files=files)
    if len(study.surveys) < 2:
        raise ConfigurationError(
            f"there is one survey ({', '.join(study.surveys)}): scores need two or more"
        )
    return study


def _found(argument: str) -> list[tuple[tuple[str, str], str]]:
    places = _PLACEHOLDER.findall(argument)
    if places:
        if sorted(places) != ["model", "survey"]:
            raise ConfigurationError(
                f"{argument!r} must have {{model}} once and {{survey}} once, as in "
                "'out/{model}_{survey}.parquet'"
            )
        return _matching(argument)
    names, equals, path = argument.partition("=")
    model, colon, survey = names.partition(":")
    if not (equals and colon and model and survey and path):
        raise ConfigurationError(
            f"{argument!r} is not of the form MODEL:SURVEY=FILE, nor a pattern with {{model}} and "
            "{survey}"
        )
    return [((model, survey), path)]


def _matching(pattern: str) -> list[tuple[tuple[str, str], str]]:
    """The files of a pattern, sorted. No name has a slash in it; a survey's is short.

    So {model}_{survey} and {survey}_{model} may have an underscore in the model's name.
    """
    groups = {"{model}": "(?P<model>[^/]+)", "{survey}": "(?P<survey>[^/]+?)"}
    parts = re.split(r"(\{model\}|\{survey\})", pattern)
    form = re.compile("".join(groups.get(part) or re.escape(part) for part in parts))
    stars = re.sub(r"([\[\]*?])", r"[\1]", pattern).replace("{model}", "*")
    root = Path(stars).anchor
    paths = Path(root or ".").glob(str(Path(stars.replace("{survey}", "*"))).removeprefix(root))
    found = []
    for path in sorted(map(str, paths)):
        if match := form.fullmatch(path) or form.fullmatch(f"./{path}"):
            found.append(((match["model"], match["survey"]), path))
    if not found:
        raise ConfigurationError(f"no file fits {pattern!r}")
    return found


def score_study(
    study: Study,
    metrics: Sequence[str],
    *,
    k: int = PLATONIC_K,
    permutations: int | None = None,
    seed: int = 0,
    drop_invalid: bool = False,
    **pairing: Any,
) -> list[StudyScore]:
    """By pair of surveys, metric and model. All models of a pair are scored on the same sources.

    pairing: keywords of `pair`.

    Raises InputError, naming the files, where they cannot be scored; the other errors as
    `read_embeddings`, `pair` and `usable_rows`.
    """
    found = []
    for surveys in study.pairs():
        models = [m for m in study.models if all((m, s) in study.files for s in surveys)]
        if not models:
            continue
        read = [
            read_embeddings(study.files[model, survey], by_row=bool(pairing.get("by_row")))
            for model in models
            for survey in surveys
        ]
        files = usable_rows(*pair_all(read, **pairing), drop=drop_invalid)
        scored = [
            (model, *_measured(two, metrics, k=k, permutations=permutations, seed=seed))
            for model, two in zip(models, zip(files[::2], files[1::2], strict=True), strict=True)
        ]
        found += [
            StudyScore(model=model, surveys=surveys, score=scores[place], files=two)
            for place in range(len(metrics))
            for model, two, scores in scored
        ]
    return found


def _measured(
    two: tuple[EmbeddingFile, EmbeddingFile], metrics: Sequence[str], **options: Any
) -> tuple[tuple[EmbeddingFile, EmbeddingFile], list[MetricScore]]:
    first, second = two
    try:
        return two, measure(first.embeddings, second.embeddings, metrics, **options)
    except ValueError as error:
        raise InputError(f"{first.label} and {second.label} cannot be scored: {error}") from None
