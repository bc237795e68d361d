"""One model in this process by the service's settings, without an engine around it."""

from __future__ import annotations

from collections.abc import Sequence

from vim_embed.engines.certified import check_used, load_certified, read_certificates
from vim_embed.inference.embedder import Embedder
from vim_embed.settings import Settings
from vim_embed.types.certificate import Certificate
from vim_embed.types.devices import is_ieee, resolve_devices, resolve_dtype
from vim_embed.weights.catalogue import CatalogueEntry
from vim_embed.weights.load import load_entry


def used_certificates(
    settings: Settings, entries: Sequence[CatalogueEntry]
) -> tuple[Certificate, ...]:
    """The certificates of the settings, which must have an effect on one of the models each.

    Raises CertificateError, or ValueError for a share of neighbours that nothing asks for.
    """
    if settings.dtype != "auto" and "keep_neighbours" in settings.model_fields_set:
        raise ValueError("--keep-neighbours has an effect with --dtype auto alone")
    certificates = read_certificates(settings.certificates)
    if not settings.model_control:  # models of other names may come
        check_used(certificates, entries, settings.dtype)
    return certificates


def load_in_process(
    entry: CatalogueEntry,
    settings: Settings,
    certificates: Sequence[Certificate] = (),
    *,
    dtype: str | None = None,
) -> Embedder:
    """The model on the first device of the settings, as the service would load it there.

    dtype: in place of the settings' one. Raises CertificateError, WeightsError, BackendUnavailable
    or ValueError, each naming the fix.
    """
    device = resolve_devices(settings.device)[0]

    def load(dtype: str) -> Embedder:
        return load_entry(
            entry,
            device=device,
            dtype=resolve_dtype(dtype),
            ieee=is_ieee(dtype),
            backend=settings.backend,
            random_weights=settings.random_weights,
            exact_rows=settings.exact_rows,
        )

    keep = settings.keep_neighbours
    return load_certified(entry, dtype or settings.dtype, certificates, keep, load)
