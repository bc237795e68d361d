"""A loaded model belongs to the process that loaded it: CUDA and threads do not survive a fork."""

from __future__ import annotations

import os
from typing import NoReturn

import torch

_LOAD_THERE = "call load_model in each process that embeds"


class OneProcess:
    """The process that a model of a device was loaded in."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = os.getpid()

    def check(self) -> None:
        """Raise RuntimeError in a fork of that process where a forward would fail or hang.

        Threads of OpenMP are not in a fork, which waits for them for ever; one thread needs none.
        """
        if os.getpid() == self._process:
            return
        if self._device.type == "cuda":
            raise RuntimeError(
                f"the model was loaded before this process was forked: {_LOAD_THERE}, and start "
                'processes with multiprocessing.set_start_method("spawn")'
            )
        if torch.get_num_threads() > 1:
            raise RuntimeError(
                f"the model was loaded before this process was forked: {_LOAD_THERE}, or call "
                "torch.set_num_threads(1) in it first"
            )


def refuse_copy(what: str) -> NoReturn:
    """Raise TypeError for whoever pickles or copies it."""
    raise TypeError(f"{what} can be neither pickled nor copied: {_LOAD_THERE}")
