"""Tensors that many forwards read: how long they are kept."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from vim_embed.kernels.constants import Constants, handed_out

MADE: list[int] = []


def tables(key: int) -> tuple[Tensor, ...]:
    MADE.append(key)
    return torch.full((1000,), float(key)), torch.full((24,), key)


def asked(constants: Constants[int], *keys: int) -> list[int]:
    """The keys whose tensors were made anew."""
    MADE.clear()
    for key in keys:
        floats, numbers = constants.get(key, lambda: tables(key))  # noqa: B023
        assert bool((floats == key).all())
        assert bool((numbers == key).all())
    return list(MADE)


def test_each_is_made_once() -> None:
    assert asked(Constants(), 1, 2, 1, 2, 2, 1) == [1, 2]


def test_the_least_recently_used_are_forgotten_above_a_size() -> None:
    constants = Constants[int](most_bytes=3 * 13_000)
    assert asked(constants, 1, 2, 3, 1) == [1, 2, 3]
    assert asked(constants, 4, 1, 3) == [4]
    assert asked(constants, 2) == [2]
    assert len(constants) == 3


def test_what_alone_is_larger_is_kept_all_the_same() -> None:
    constants = Constants[int](most_bytes=10)
    assert asked(constants, 1, 1, 2, 2, 1) == [1, 2, 1]
    assert len(constants) == 1


def test_tiny_ones_are_bounded_in_number() -> None:
    constants = Constants[int](most_bytes=100 * 4096)
    for key in range(1000):
        constants.get(key, lambda: (torch.zeros(3),))
    assert len(constants) < 100


def test_whoever_captures_keeps_what_is_forgotten() -> None:
    constants = Constants[int](most_bytes=10)
    asked(constants, 1)
    with handed_out() as kept:
        asked(constants, 1, 2)
    with handed_out() as others:
        asked(constants, 3)
    assert [float(tensor[0]) for tensor in kept] == [1, 1, 2, 2]
    assert [float(tensor[0]) for tensor in others] == [3, 3]
    known = weakref.ref(kept[0])
    assert known() is not None
    del kept
    assert known() is None
