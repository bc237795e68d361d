"""Loads a model in the dtype that its certificates of precision allow, and says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vim_embed import __version__
from vim_embed.inference.embedder import Embedder
from vim_embed.kernels.select import BackendUnavailable
from vim_embed.types.certificate import Certificate, CertificateError, parse_certificate
from vim_embed.types.devices import device_name
from vim_embed.weights.catalogue import CatalogueEntry

Load = Callable[[str], Embedder]  # by the name of a dtype


def read_certificates(paths: Sequence[str]) -> tuple[Certificate, ...]:
    """Raises CertificateError for a file that cannot be read or is none."""
    found = []
    for path in paths:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CertificateError(f"--certificate {path} cannot be read: {error}") from error
        found.append(parse_certificate(text, path))
    return tuple(found)


def check_used(
    certificates: Sequence[Certificate], entries: Sequence[CatalogueEntry], *given: str
) -> None:
    """Raises CertificateError for one that has no effect on any of the models.

    given: dtypes that are asked for, "auto" included.
    """
    for one in certificates:
        models = [entry for entry in entries if one.is_for(entry.name)]
        if not models:
            names = ", ".join(entry.name for entry in entries)
            raise CertificateError(
                f"{one.source} is for the model {one.model}, and served are {names}: leave it out"
            )
        dtypes = [d for entry in models for d in ([entry.dtype] if entry.dtype else given)]
        if not {one.dtype, "auto"} & set(dtypes):
            raise CertificateError(
                f"{one.source} is for {one.model} in {one.dtype}, and it computes in {dtypes[0]}: "
                f"give --dtype {one.dtype} or --dtype auto, or leave the certificate out"
            )


def load_certified(
    entry: CatalogueEntry,
    dtype: str,
    certificates: Sequence[Certificate],
    keep: float,
    load: Load,
) -> Embedder:
    """The model in `dtype`, with the certificate that is for it; for "auto" in the fastest dtype
    whose certificate keeps at least `keep` of neighbours.

    Raises CertificateError where a certificate for this model and dtype does not fit.
    """
    mine = [one for one in certificates if one.is_for(entry.name)]
    if dtype == "auto" and entry.dtype is None:
        return _fastest(mine, keep, load)
    model = load(entry.dtype or dtype)
    for one in mine:
        if one.dtype == model.info.dtype:
            misfits = _misfits(one, model)
            if misfits:
                raise CertificateError(
                    f"{one.source} does not fit: {'; '.join(misfits)}. Certify this model anew, "
                    "or leave the certificate out"
                )
            model.info = replace(model.info, certificate=one)
    return model


def _fastest(certificates: Sequence[Certificate], keep: float, load: Load) -> Embedder:
    against = []
    for one in sorted(certificates, key=lambda each: -each.speed):
        problem = _problem(one, keep)
        if not problem:
            try:
                model = load(one.dtype)
            except BackendUnavailable as error:
                problem = str(error)
            else:
                problem = "; ".join(_misfits(one, model))
                if not problem:
                    why = (
                        f"auto: {one.speed:.2f} times as fast as float32, and keeps at least "
                        f"{one.least:.4f} of neighbours, where {keep:g} is asked"
                    )
                    model.info = replace(model.info, certificate=one, dtype_reason=why)
                    return model
                del model  # its memory goes back before the next is loaded
        against.append(f"{one.dtype}: {problem}")
    model = load("float32")
    none = "no certificate of a faster dtype was given (see vim-embed-server certify)"
    why = f"auto: float32; {'; '.join(against) or none}"
    model.info = replace(model.info, dtype_reason=why)
    return model


def _problem(one: Certificate, keep: float) -> str:
    """Why a certificate does not speak for its dtype, or nothing."""
    if one.faults:
        return f"its certificate found: {one.faults[0]}"
    if one.least < keep:
        return f"its certificate vouches for {one.least:.4f} of neighbours, and {keep:g} is asked"
    if one.speed <= 1:
        return f"it is {one.speed:.2f} times as fast as float32, so that float32 is the better"
    return ""


def _misfits(one: Certificate, model: Embedder) -> list[str]:
    return one.misfits(model.info, device_name(model.device), __version__, torch.__version__)
