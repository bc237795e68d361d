"""The image processor, and the host's preprocessor around it."""

from __future__ import annotations

import pickle
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from client.fake_service import FakeService
from vim_embed_client import InputError
from vim_embed_client.platonic.model import Spec
from vim_embed_client.platonic.processor import ImageProcessor

from .adapters import loaded

pytestmark = pytest.mark.usefixtures("environment")

SPEC = Spec(32, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.5))


def image(height: int = 48, width: int = 40) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_uint8_loses_nothing_against_the_float_pipeline() -> None:
    from transformers import ViTImageProcessorPil

    reference = ViTImageProcessorPil(
        size={"height": 32, "width": 32},
        resample=Image.Resampling.BILINEAR,
        image_mean=list(SPEC.mean),
        image_std=list(SPEC.std),
    )
    expected = reference(image(), return_tensors="np")["pixel_values"]
    exact = ImageProcessor(SPEC, "float32")(image())["pixel_values"]
    np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-6)
    bytes_ = ImageProcessor(SPEC)(image())["pixel_values"]
    assert bytes_.dtype == np.uint8
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (SPEC.mean, SPEC.std))
    np.testing.assert_allclose((bytes_ / 255 - mean) / std, expected, rtol=0, atol=1e-6)
    half = ImageProcessor(SPEC, "float16")(image())["pixel_values"]
    assert half.dtype == np.float16


def test_the_processor_takes_what_the_host_passes() -> None:
    processor = pickle.loads(pickle.dumps(ImageProcessor(SPEC)))
    array = processor(image(), return_tensors="pt")["pixel_values"]
    assert array.dtype == torch.uint8
    assert array.shape == (1, 3, 32, 32)
    pillow = processor(Image.fromarray(image()), return_tensors="pt")["pixel_values"]
    assert torch.equal(pillow, array)
    assert processor([image(), image(9, 9)])["pixel_values"].shape == (2, 3, 32, 32)
    flipped = processor(image()[..., ::-1])["pixel_values"]
    assert np.array_equal(flipped[:, ::-1], array.numpy())
    with pytest.raises(InputError, match=r"got float32 \(4, 4, 3\)"):
        processor(np.zeros((4, 4, 3), np.float32))


class ReleasePreprocess:
    """The arguments of `pu.preprocess.PreprocessHF` in 0.1.0."""

    def __init__(self, modes: Any, autoproc: Any, resize: bool = False) -> None:
        self.given = {"modes": modes, "autoproc": autoproc, "resize": resize}


class HeadPreprocess:
    """The arguments of `pu.preprocess.PreprocessHF` in the development head."""

    def __init__(
        self,
        modes: Any,
        autoproc: Any,
        resize: bool = True,
        resize_mode: str = "match",
        alias: str | None = None,
    ) -> None:
        self.given = {"modes": modes, "autoproc": autoproc, "resize": resize}
        self.given |= {"resize_mode": resize_mode, "alias": alias}


@pytest.mark.parametrize(
    ("cls", "more"),
    [
        (ReleasePreprocess, {}),
        (HeadPreprocess, {"resize_mode": "match", "alias": "vim-remote"}),
    ],
)
def test_the_host_s_own_preprocessor_is_built_for_either_version(
    fake: FakeService, monkeypatch: pytest.MonkeyPatch, cls: type, more: dict[str, Any]
) -> None:
    package, module = types.ModuleType("pu"), types.ModuleType("pu.preprocess")
    module.PreprocessHF = cls  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pu", package)
    monkeypatch.setitem(sys.modules, "pu.preprocess", module)
    adapter = loaded()
    made = adapter.get_preprocessor(iter(["hsc", "jwst"]), resize=True, resize_mode="match")
    given = {"modes": ["hsc", "jwst"], "autoproc": adapter.processor, "resize": True}
    assert made.given == given | more
