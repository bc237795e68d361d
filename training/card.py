"""Writes the model card of trained weights: `python -m training.card FILE -o docs/vim-micro.md`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from training.data import HELD_OUT_FROM, TRAINED_BELOW, regions
from training.evaluate import (
    RANDOM_SEEDS,
    WINDOW,
    Figures,
    figures,
    held_out,
    trained,
    untrained,
)
from vim_embed.types.devices import device_name
from vim_embed_client.scoring.metrics import MetricScore
from vim_embed_client.scoring.mknn import Score

BAR = 0.65  # MKNN that a released file must reach


_ONE_LOOK = "The held-out ones were looked at once, after that."
_LOOKS = "The held-out ones were looked at {} times, so that they are a little too good."

PAGE = """# vim-micro

A demonstration, not a scientific instrument: a small Vim in hustvl's layout ({parameters:.2f}
million weights, {megabytes:.1f} MB in float16), trained without labels, so that the package shows
trained embeddings where no weights can be fetched. It takes images of {image} pixels and gives
{dim} numbers an image. Written by `python -m training.card`.

## Data and recipe

{trained} sources of the Hubble eXtreme Deep Field picture left of column {below}, and {simulated:,}
galaxies simulated with galsim; no labels. Two views of each, from space and from the ground, are
brought together by InfoNCE. A pretext task beside it asks that the ellipticity, measured in each
view's own pixels, takes a share of the embedding's variance (`training/README.md`). The recipe:
{recipe}.

Digest of these weights: `{digest}`.

## Figures

{held_out} held-out sources, from column {held_out_from} on, none of whose pixels were trained on.
Kernels `{backend}` on {device}, torch {torch}, pooling mean, k = 10. What the nearest neighbours of
the view from space and of that from the ground have in common (MKNN):

| weights | MKNN | 95 % interval | by chance |
|---|---|---|---|
{mknn}

How far the ten nearest agree in a property measured in the picture, from 0 (as random sources
do) to 1 (all the same):

| property | trained | random weights |
|---|---|---|
{properties}

{again}Ellipticity is measured under a Gaussian of {window} pixels (`training/evaluate.py`): within
an aperture, the light of neighbours decides. Of 578 simulated galaxies, the rank correlation with
the true one was 0.92, and 0.48 within an aperture. The ground view shows little of it: of {trained}
trained sources, its ellipticity has a rank correlation of 0.52 with that of the space view, and
the ten nearest by shape and angle in the ground view agree to 0.17 in the ellipticity of the space
view. Bringing the two views together does not ask for what space alone shows; by that alone,
neighbours agree in ellipticity no better than those of random weights. The pretext task asks for
it. It measures the same kind of quantity as this table, in the views of trained sources alone: that
the model has learned what it was asked to, and that this holds for sources that it has not seen, is
all that the row shows.

Bars: MKNN of at least {bar}, its interval apart from those of random weights, and neighbours that
agree in each property better than those of random weights, intervals apart. {bars}

The recipe was chosen by training on 405 of the sources, those above row 540, and by the figures of
223 others, from row 612 on and left of column 632 (`training/README.md`). {looks}

## Limits

One picture, stretched for the press, is all its real data: it has seen no survey, no band and no
depth other than this. The ground view is a likeness. Views in training are moved by a pixel at
most: cut-outs of a source that are further apart have fewer neighbours in common. An image turned
by 90° has another embedding: in training both views of a source are turned alike. Embeddings are
not calibrated for anything.
"""


ONCE = """These weights were trained once{where}; that run has not been repeated. Eight trainings
of 960 steps, by this recipe and seven like it, were each run twice on an H200: the weights were the
same to the last bit (2026-11-29). Another device draws other random numbers from the seed; whether
the figures of such weights lie within the intervals was not tried.

"""

AGAIN = """Trained again from the same seed, with the same recipe, on {device}:
{differs}. The figures of those weights lie within the intervals{but}:

| | packaged | trained again |
|---|---|---|
{rows}

"""


def card(
    path: Path, device: str = "auto", looks: int = 1, again: Path | None = None
) -> tuple[str, list[str]]:
    """The page, and in what the weights miss the bars.

    looks: how often the held-out figures have been looked at, this time included. again: weights of
    another run of the same recipe.
    """
    model = trained(path, device)
    data = held_out(model.info.preprocessing.image_size)
    found = figures(model, data)
    random = {seed: figures(untrained(model, seed), data) for seed in RANDOM_SEEDS}
    recipe = recorded_recipe(path)
    properties = [_property_row(name, found, random.values()) for name in data.properties]
    rows = [_mknn_row("trained", found.mknn)]
    rows += [_mknn_row(f"random, seed {seed}", one.mknn) for seed, one in random.items()]
    problems = missed(found, list(random.values()))
    repeated = _once(path)
    if again is not None:
        repeated = _again(path, again, found, figures(trained(again, device), data))
    page = PAGE.format(
        again=repeated,
        window=WINDOW,
        image=model.info.preprocessing.image_size,
        dim=model.info.dim,
        bar=BAR,
        bars=f"Missed: {'; '.join(problems)}." if problems else "All are met.",
        looks=_ONE_LOOK if looks == 1 else _LOOKS.format(looks),
        parameters=sum(p.numel() for p in model.module.parameters()) / 1e6,
        megabytes=path.stat().st_size / 1e6,
        trained=len(regions().trained),
        below=TRAINED_BELOW,
        simulated=recipe.get("simulations", 0),
        recipe=", ".join(f"{name} {value}" for name, value in recipe.items()),
        digest=model.info.weights.digest,
        held_out=len(data.space),
        held_out_from=HELD_OUT_FROM,
        backend=model.info.backend,
        device=device_name(model.device),
        torch=torch.__version__,
        mknn="\n".join(rows),
        properties="\n".join(properties),
    )
    return page, problems


def recorded_recipe(path: Path) -> dict[str, Any]:
    """What `training.train` wrote into the file's metadata."""
    found: dict[str, Any] = json.loads(_metadata(path).get("recipe", "{}"))
    return found


def missed(found: Figures, random: list[Figures]) -> list[str]:
    """Which bars of a release the figures miss, in words."""
    problems = []
    if found.mknn.mknn < BAR:
        problems.append(f"MKNN is {found.mknn.mknn:.3f}, and {BAR} is asked")
    if any(found.mknn.low <= one.mknn.high for one in random):
        problems.append("its interval touches that of random weights")
    for name, score in found.properties.items():
        if any(score.low <= one.properties[name].high for one in random):
            problems.append(f"{name} is not agreed on better than by random weights")
    return problems


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _once(path: Path) -> str:
    device = _metadata(path).get("device")
    return ONCE.format(where=f" on {device}" if device else "")


def _mknn_row(name: str, one: Score) -> str:
    return f"| {name} | {one.mknn:.3f} | {one.low:.3f} to {one.high:.3f} | {one.chance:.3f} |"


def _property_row(name: str, found: Figures, random: Iterable[Figures]) -> str:
    others = ", ".join(_cell(one.properties[name]) for one in random)
    return f"| {name} | {_cell(found.properties[name])} | {others} |"


def _again(path: Path, again: Path, first: Figures, second: Figures) -> str:
    scores: dict[str, tuple[Score | MetricScore, Score | MetricScore]] = {
        "MKNN": (first.mknn, second.mknn)
    }
    scores |= {name: (one, second.properties[name]) for name, one in first.properties.items()}
    rows, outside = [], []
    for name, (one, other) in scores.items():
        value = _value(other)
        rows.append(
            f"| {name} | {_value(one):.3f} ({one.low:.3f} to {one.high:.3f}) | {value:.3f} |"
        )
        if not one.low <= value <= one.high:
            outside.append(name)
    but = f", but for {', '.join(outside)}" if outside else ""
    devices = [_metadata(one).get("device", "another device") for one in (path, again)]
    differs = "it draws other random numbers from the seed"
    if devices[0] == devices[1]:
        differs = "rounding in matrix products is all that may differ"
    return AGAIN.format(rows="\n".join(rows), but=but, device=devices[1], differs=differs)


def _value(one: Score | MetricScore) -> float:
    return one.mknn if isinstance(one, Score) else one.value


def _cell(one: MetricScore) -> str:
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/vim-micro.md"))
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--looks", type=int, default=1, help="how often the held-out figures were looked at"
    )
    parser.add_argument("--again", type=Path, help="weights of another run of the same recipe")
    given = parser.parse_args()
    page, problems = card(given.weights, given.device, given.looks, given.again)
    given.output.write_text(page, encoding="utf-8")
    print(page)
    for problem in problems:
        print(f"Missed: {problem}")
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
