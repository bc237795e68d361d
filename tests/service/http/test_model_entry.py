"""A model's entry in `/models` is the same in the answer, the schema, its example and the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from generate_docs import ROOT
from pydantic import BaseModel

from support.serving import running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.http.openapi import examples, schemas
from vim_embed.settings import Settings

Keys = dict[str, frozenset[str]]
PARTS: dict[str, type[BaseModel]] = {
    "": schemas.ModelEntry,
    "weights": schemas.WeightsEntry,
    "preprocessing": schemas.PreprocessingEntry,
    "limits": schemas.LimitsEntry,
}
SCHEMA: Keys = {part: frozenset(kind.model_fields) for part, kind in PARTS.items()}


@pytest.fixture(scope="module")
def entry() -> Iterator[dict[str, Any]]:
    with running(create_app(Settings(), ArithmeticEngine())) as url:
        yield httpx.get(f"{url}/models").json()["models"][0]


def keys(entry: dict[str, Any]) -> Keys:
    return {"": frozenset(entry)} | {part: frozenset(entry[part]) for part in PARTS if part}


def test_the_answer(entry: dict[str, Any]) -> None:
    assert keys(entry) == SCHEMA
    schemas.ModelEntry.model_validate(entry)


def test_the_example() -> None:
    assert keys(examples.MODEL) == SCHEMA


def test_the_page() -> None:
    text = (ROOT / "docs/http.md").read_text()
    row = next(line for line in text.splitlines() if "`GET /models/{name}` (or a Hub id)" in line)
    for part, names in SCHEMA.items():
        told = row if not part else re.search(rf"`{part}` \(([^)]*)\)", row)[1]  # type: ignore[index]
        assert names <= set(re.findall(r"`(\w+)`", told)), part
