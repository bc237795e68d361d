"""Fluxes become the pixels of platonic-universe: its release and its head."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from vim_embed_pixels.errors import UnusableOptions
from vim_embed_pixels.stretch import Stretch, to_rgb
from vim_embed_pixels.surveys import SURVEYS, survey_stretch

from .survey import Array, galaxy

BANDS = {"hsc": 5, "jwst": 7, "legacysurvey": 4}
SCALES = {"hsc": 1.0, "jwst": 4.0, "legacysurvey": 0.03}
CUBES = {
    f"{survey}/{seed}": galaxy(bands, 96, seed=seed, flux=SCALES[survey])
    for survey, bands in BANDS.items()
    for seed in range(5)
}
THEIR_SCRIPT = """
import sys
import types
import numpy as np
import no_torchvision

# The module alone: the package imports transformers and data sets, which it has no use for.
package = sys.modules["pu"] = types.ModuleType("pu")
package.__path__ = [sys.argv[3]]
sys.modules["datasets"] = types.ModuleType("datasets")
sys.modules["datasets"].load_dataset = None
from pu.preprocess import flux_to_pil

cubes = dict(np.load(sys.argv[1]))
out = {}
for name, cube in cubes.items():
    survey = name.split("/")[0]
    out[f"fixed/{name}"] = flux_to_pil({"flux": cube}, survey, [survey])
    for kind, flux in (("own", cube), ("grey", cube[0])):
        out[f"{kind}/{name}"] = flux_to_pil({"flux": flux}, survey, [survey], percentile_norm=False)
np.savez(sys.argv[2], **out)
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """What platonic-universe itself makes of CUBES, in a process with its missing imports."""
    spec = find_spec("pu")
    if spec is None or spec.origin is None:
        pytest.skip("needs platonic-universe")
    folder = tmp_path_factory.mktemp("theirs")
    np.savez(folder / "cubes.npz", **CUBES)  # type: ignore[arg-type]
    files = [str(folder / "cubes.npz"), str(folder / "o.npz"), str(Path(spec.origin).parent)]
    host = str(Path(__file__).parents[1] / "platonic" / "host")
    script = f"import sys; sys.path.append({host!r})\n{THEIR_SCRIPT}"
    subprocess.run([sys.executable, "-c", script, *files], check=True)
    return dict(np.load(folder / "o.npz"))


@pytest.mark.parametrize("name", CUBES)
def test_the_very_numbers_of_platonic_universe(theirs: dict[str, Array], name: str) -> None:
    survey, cube = name.split("/")[0], CUBES[name]
    assert len(np.unique(theirs[f"fixed/{name}"])) > 50
    # Their percentiles without fixed limits are 1 and 99, of all bands together, and arcsinh.
    own = survey_stretch(survey, percentiles=(1.0, 99.0))
    for ours, kind in (
        (to_rgb(cube, SURVEYS[survey]), "fixed"),
        (to_rgb(cube, own), "own"),
        (to_rgb(cube[0], Stretch()), "grey"),
    ):
        np.testing.assert_array_equal(ours.transpose(1, 2, 0), theirs[f"{kind}/{name}"])


# As platonic-universe's data has them: bands, pixels, and a typical flux.
HEAD_CUBES = {
    f"{survey}/{seed}": galaxy(bands, size, seed=seed, flux=flux)
    for survey, (bands, size, flux) in {
        "hsc": (5, 160, 1.0), "jwst": (7, 96, 4.0), "legacysurvey": (4, 160, 0.03)
    }.items()
    for seed in range(3)
}  # fmt: skip
HEAD_SCRIPT = """
import sys
import astropy.visualization as visual
import numpy as np
from pu.preprocess import flux_to_pil

out = {}
for name, cube in dict(np.load(sys.argv[1])).items():
    survey = name.split("/")[0]
    own = {"norm_mode": "per_image"}
    for kind, how in (("head", {}), ("flat", {"resize": False}), ("own", own)):
        out[f"{kind}/{name}"] = flux_to_pil({"flux": cube}, survey, [survey], **how)
np.savez(sys.argv[2], **out)
"""


def head_stretch(survey: str, kind: str) -> Stretch:
    if kind == "own":
        return survey_stretch(f"{survey}@head", percentiles=(1.0, 99.0))
    how = survey_stretch(f"{survey}@head")
    return replace(how, zoom=None) if kind == "flat" else how


def test_the_numbers_of_platonic_universe_s_head() -> None:
    """Its own output for HEAD_CUBES, kept here: its head is no release. Of commit 6672072."""
    kept = np.load(Path(__file__).parents[2] / "data" / "flux_to_pil_head.npz")
    for name in kept:
        kind, survey, seed = name.split("/")
        ours = to_rgb(HEAD_CUBES[f"{survey}/{seed}"], head_stretch(survey, kind))
        off = np.abs(ours.transpose(1, 2, 0).astype(int) - kept[name])
        # Another processor's arcsinh may differ in its last bit.
        assert off.max() <= 1
        assert (off == 0).mean() > 0.999


@pytest.mark.skipif("PU_HEAD" not in os.environ, reason="needs a checkout of its head at PU_HEAD")
def test_the_very_numbers_of_platonic_universe_s_head(tmp_path: Path) -> None:
    np.savez(tmp_path / "cubes.npz", **HEAD_CUBES)  # type: ignore[arg-type]
    head = Path(os.environ["PU_HEAD"])
    host = Path(__file__).parents[1] / "platonic" / "host"
    command = [sys.executable, "-c", HEAD_SCRIPT, str(tmp_path / "cubes.npz"), str(tmp_path / "o")]
    found = {
        "PYTHONPATH": f"{head / 'src'}{os.pathsep}{host}",
        "PU_PERCENTILES_PATH": str(head / "data" / "percentiles.json"),
    }
    subprocess.run(command, check=True, env=os.environ | found)
    theirs = np.load(tmp_path / "o.npz")
    assert len(theirs) == 27
    for name in theirs:
        kind, survey, seed = name.split("/")
        ours = to_rgb(HEAD_CUBES[f"{survey}/{seed}"], head_stretch(survey, kind))
        np.testing.assert_array_equal(ours.transpose(1, 2, 0), theirs[name], err_msg=name)


def test_the_head_s_limits_come_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_in = survey_stretch("hsc@head").limits
    bands = {band: {"p1": -1.0, "p99": place} for place, band in enumerate("grz", start=1)}
    path = tmp_path / "data" / "percentiles.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"hsc": bands}))
    monkeypatch.chdir(tmp_path)
    assert survey_stretch("hsc@head").limits == ((-1.0, 3), (-1.0, 2), (-1.0, 1)) != built_in
    monkeypatch.setenv("PU_PERCENTILES_PATH", str(tmp_path / "gone.json"))
    with pytest.raises(UnusableOptions, match="does not hold platonic-universe's percentiles"):
        survey_stretch("hsc@head")
