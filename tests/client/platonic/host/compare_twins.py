"""Embeds simulated galaxies by the host's own adapters and by their remote twins.

Run in the folder where the models lie by their names; takes JSON of [alias, size, name] each, and
prints JSON of what came out: alias -> shape, relative L2 error of the twin, and of its pixels.
"""

import json
import sys

import torch
from pu.models import get_adapter

import galaxies
import on_cpu  # noqa: F401

MODES = ["hsc", "legacysurvey"]


def embedded(alias, model, size):
    """The pixels that the host's preprocessor makes for it, and the rows of both surveys."""
    adapter = get_adapter(alias)(model, size, alias=alias)
    adapter.load()
    prepare = adapter.get_preprocessor(MODES)
    flux = galaxies.load_dataset(
        "Smith42/legacysurvey_hsc_crossmatched", split="train", streaming=True
    )
    made = [prepare(row) for row in flux]
    batch = {mode: torch.stack([row[mode] for row in made]) for mode in MODES}
    rows = torch.cat([adapter.embed_for_mode(batch, mode) for mode in MODES])
    pixels = torch.cat([batch[mode] for mode in MODES])
    if pixels.dtype == torch.uint8:
        spec = adapter.processor.spec
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
        pixels = (pixels / 255 - mean) / std
    return pixels, rows


told = {}
for alias, size, model in json.loads(sys.argv[1]):
    (own_pixels, own), (pixels, rows) = (
        embedded(name, model, size) for name in (alias, f"{alias}-remote-{size}")
    )
    told[f"{alias} {size}"] = {
        "shape": list(rows.shape),
        "error": float((rows - own).norm() / own.norm()),
        "pixels": float((pixels - own_pixels).abs().max())
        if pixels.shape == own_pixels.shape
        else -1,
        "spread": float((own[:1] - own[1:]).norm() / own.norm()),
    }
print(json.dumps(told))
