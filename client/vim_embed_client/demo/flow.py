"""The experiment in small: two views of the same sources, embedded, scored and written down.

Knows nothing of the terminal and of how the service was started.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vim_embed_client import Client, Embeddings, Provenance
from vim_embed_client.bulk.output_checks import refuse_foreign
from vim_embed_client.demo.stamps import (
    Sources,
    cut_stamps,
    find_sources,
    hubble_picture,
    stamp_boxes,
)
from vim_embed_client.demo.views import HYPER_SUPRIME_CAM, ground_view, to_ground
from vim_embed_client.errors import ProvenanceChangedError
from vim_embed_client.formats import safetensors_chunks
from vim_embed_client.results import ModelEntry
from vim_embed_client.scoring.embedding_files import safetensors_metadata
from vim_embed_client.scoring.mknn import Score, curve_ks, score_curve

Pixels = NDArray[np.uint8]
Progress = Callable[[int, int], None]

_EMBEDDINGS, _SUMMARY = "embeddings.safetensors", "summary.json"


@dataclass(frozen=True, kw_only=True)
class Views:
    """Row i of `space` and `ground`, both (N, 3, S, S), is source i; brightest first.

    found: how many sources the picture has in all.
    """

    space: Pixels
    ground: Pixels
    sources: Sources
    found: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """Embeddings of both views, (N, D) each, and what follows from them.

    source: where the weights come from, as the service says. seconds: for all 2 N rows.
    """

    views: Views
    space: NDArray[Any]
    ground: NDArray[Any]
    provenance: Provenance
    source: str
    score: Score
    curve: Sequence[Score]
    seconds: float
    seed: int

    @property
    def rows_per_second(self) -> float:
        """Images a second through the client, both views together."""
        return 2 * len(self.space) / self.seconds

    @property
    def weights(self) -> str:
        """The weights in a few words, for titles and logs."""
        if self.provenance.random_weights:
            return "RANDOM WEIGHTS, not a scientific result"
        revision = self.provenance.revision
        return f"weights {self.source}" + (f" at {revision[:12]}" if revision else "")

    def summary(self) -> dict[str, Any]:
        """Everything but the arrays, for JSON."""
        return {
            "weights": self.weights,
            "random_weights": self.provenance.random_weights,
            "provenance": asdict(self.provenance),
            "sources": len(self.space),
            "sources_found": self.views.found,
            "score": self.score.as_dict(),
            "curve": [score.as_dict() for score in self.curve],
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.rows_per_second, 2),
            "ground": asdict(HYPER_SUPRIME_CAM),
            "seed": self.seed,
        }


def make_views(count: int, entry: ModelEntry, *, seed: int = 0) -> Views:
    """Both views of the `count` brightest sources, in the size that the model publishes.

    seed: of the noise in the ground view. Raises InputError if there are fewer sources.
    """
    picture = hubble_picture()
    found = find_sources(picture)
    sources = found.brightest(count)
    ground = ground_view(picture, seed=seed)
    boxes = stamp_boxes(sources.positions)
    size = entry["preprocessing"]["image_size"]
    interpolation = entry["preprocessing"]["interpolation"]
    return Views(
        space=cut_stamps(picture, boxes, size=size, interpolation=interpolation),
        ground=cut_stamps(
            ground, to_ground(boxes, picture, ground), size=size, interpolation=interpolation
        ),
        sources=sources,
        found=len(found),
    )


def run(
    client: Client,
    entry: ModelEntry,
    views: Views,
    *,
    k: int = 10,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Result:
    """Embed both views through the client and score them.

    on_progress: called with (rows done, all rows) of both views together. Raises
    ProvenanceChangedError if the two were not embedded by the same model.
    """
    rows = len(views.space)

    def embed(pixels: Pixels, before: int) -> Embeddings:
        def advance(done: int, _: int) -> None:
            if on_progress:
                on_progress(before + done, 2 * rows)

        return client.embed(pixels, model=entry["name"], on_progress=advance)

    started = time.monotonic()
    space = embed(views.space, 0)
    ground = embed(views.ground, rows)
    seconds = time.monotonic() - started
    changed = space.provenance.differences(ground.provenance)
    if changed:
        raise ProvenanceChangedError(f"the two views differ in {', '.join(changed)}: start again")
    arrays = space.embeddings, ground.embeddings
    curve = score_curve(*arrays, [*curve_ks(rows), k], seed=seed)
    return Result(
        views=views,
        space=arrays[0],
        ground=arrays[1],
        provenance=space.provenance,
        source=entry["weights"]["source"],
        score=next(score for score in curve if score.k == k),
        curve=curve,
        seconds=seconds,
        seed=seed,
    )


def check_folder(folder: Path) -> bool:
    """Whether an earlier run wrote its embeddings there.

    Raises ConfigurationError where `write` would replace files that it did not write.
    """
    of_a_run = "sources_found"
    for path, is_ours in (
        (folder / _EMBEDDINGS, lambda path: of_a_run in safetensors_metadata(path)),
        (folder / _SUMMARY, lambda path: of_a_run in json.loads(path.read_text())),
    ):
        refuse_foreign(path, is_ours, "vim-embed demo")
    return (folder / _EMBEDDINGS).exists()


def write(result: Result, folder: Path) -> dict[str, Path]:
    """Write embeddings.safetensors and summary.json into an existing folder; gives their paths.

    The tensors are `space`, `ground` (N, D) and `positions` (N, 2), x and y in pixels of
    `skimage.data.hubble_deep_field()`; the metadata holds `ids` and the summary as JSON.
    """
    paths = {
        "embeddings": folder / _EMBEDDINGS,
        "summary": folder / _SUMMARY,
    }
    summary = result.summary()
    metadata = {name: _text(value) for name, value in summary.items()}
    metadata["ids"] = json.dumps(source_ids(result.views.sources))
    tensors = {
        "space": result.space,
        "ground": result.ground,
        "positions": result.views.sources.positions,
    }
    with paths["embeddings"].open("wb") as file:
        file.writelines(safetensors_chunks(tensors, metadata))
    paths["summary"].write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return paths


def source_ids(sources: Sources) -> list[str]:
    """A name for each source: its place in the picture, x and y in pixels."""
    return [f"xdf-{x:06.1f}-{y:06.1f}" for x, y in sources.positions.tolist()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
