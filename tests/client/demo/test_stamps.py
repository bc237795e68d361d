"""Sources of the Hubble picture: enough, always the same, each once."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import pytest
from skimage.data import hubble_deep_field

from vim_embed_client.demo.stamps import (
    STAMP_PIXELS,
    Sources,
    cut_stamps,
    find_sources,
    hubble_picture,
    stamp_boxes,
)
from vim_embed_client.errors import InputError


def test_the_picture_is_that_of_scikit_image(picture: Any) -> None:
    np.testing.assert_array_equal(picture, hubble_deep_field())


def test_the_picture_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert hubble_picture().shape == (872, 1000, 3)


def test_there_are_enough_sources_brightest_first(sources: Sources) -> None:
    assert len(sources) >= 1000
    assert (np.diff(sources.flux) <= 0).all()
    assert (sources.radius > 0).all()


def test_the_sources_are_always_the_same(picture: Any, sources: Sources) -> None:
    again = find_sources(picture.copy())
    np.testing.assert_array_equal(again.positions, sources.positions)


def test_no_source_is_there_twice(sources: Sources) -> None:
    apart = np.linalg.norm(sources.positions[:, None] - sources.positions, axis=2)
    np.fill_diagonal(apart, np.inf)
    assert apart.min() >= 8
    larger = np.minimum.outer(np.arange(len(sources)), np.arange(len(sources)))
    assert (apart >= 1.5 * sources.radius[larger]).all()


def test_every_stamp_lies_inside_the_picture(picture: Any, sources: Sources) -> None:
    boxes = stamp_boxes(sources.positions)
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= [picture.shape[1], picture.shape[0]]).all()
    assert (boxes[:, 2:] - boxes[:, :2] == STAMP_PIXELS).all()


def test_the_bright_stars_are_left_out(sources: Sources) -> None:
    for star in ((253, 166), (754, 578)):
        assert np.linalg.norm(sources.positions - star, axis=1).min() > 8


def test_a_source_is_in_the_middle_of_its_stamp(picture: Any, sources: Sources) -> None:
    stamps = cut_stamps(picture, stamp_boxes(sources.positions[:256]), size=STAMP_PIXELS)
    light = stamps.mean(axis=1)
    middle = light[:, 20:28, 20:28].mean(axis=(1, 2))
    border = np.median(light, axis=(1, 2))
    assert (middle > border + 10).mean() > 0.95


def test_stamps_of_the_native_size_are_the_pixels_of_the_picture(
    picture: Any, sources: Sources
) -> None:
    boxes = stamp_boxes(sources.positions[:5])
    stamps = cut_stamps(picture, boxes, size=STAMP_PIXELS)
    for stamp, (left, top, right, bottom) in zip(stamps, boxes.astype(int), strict=True):
        np.testing.assert_array_equal(stamp, picture[top:bottom, left:right].transpose(2, 0, 1))


def test_stamps_come_in_the_size_of_the_model(picture: Any, sources: Sources) -> None:
    stamps = cut_stamps(picture, stamp_boxes(sources.positions[:3]), size=224)
    assert stamps.shape == (3, 3, 224, 224)
    assert stamps.dtype == np.uint8


def test_more_sources_than_there_are_is_an_error(sources: Sources) -> None:
    assert len(sources.brightest(256)) == 256
    with pytest.raises(InputError, match=f"{len(sources)} can be found"):
        sources.brightest(100_000)
