"""What is known of a loaded model: plain data, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf, isnan

from vim_embed.types.certificate import Certificate
from vim_embed.types.preprocessing import PerChannel, Preprocessing
from vim_embed.types.token_layout import TokenLayout

EMBEDDING = "embedding"  # the output that is no layer
POOLINGS = ("mean", "cls", "patch-mean", "registers", "max", "features", "tokens")
GRANULARITIES = ("blocks", "residual", "leaves", "all")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where a model's weights came from. `digest` is the file's sha256 (of the tensors, if random).

    source: the local path, the Hub id, or "random". revision: the Hub commit, when known. tensors:
    where in the file they were, and which of them are not used.
    """

    source: str
    revision: str | None
    file: str | None
    digest: str
    random: bool = False
    tensors: str = ""


@dataclass(frozen=True, kw_only=True)
class CheckedOutput:
    """One output at load: the largest relative L2 error against the reference, and on which image.

    what: a pooling, "tokens" (all of an image) or "worst token".
    """

    what: str
    error: float
    tolerance: float
    image: str

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


@dataclass(frozen=True, kw_only=True)
class LoadCheck:
    """Outcome of the check at load. images: that were compared, in words."""

    outputs: tuple[CheckedOutput, ...]
    images: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return all(one.ok for one in self.outputs)

    @property
    def error(self) -> float:
        """The largest; NaN where one is."""
        return max(self.outputs, key=lambda one: inf if isnan(one.error) else one.error).error

    @property
    def worst(self) -> CheckedOutput:
        """The one that is furthest over, or nearest to, its tolerance."""
        return max(self.outputs, key=_share_of_tolerance)


def _share_of_tolerance(one: CheckedOutput) -> float:
    if isnan(one.error):
        return inf
    return one.error / one.tolerance if one.tolerance else inf if one.error else 0.0


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A loaded model as `/models` shows it.

    kind: "vim" or "vit". family: a row of docs/models.md, and why it is of that. dim: width of an
    embedding; features_dim: of one by the pooling `features`. classifier: what the model's own
    classifier reads, as a pooling. dtype: of the computation.
    channels: of its images. tokens: the final tokens of an image of the native size; patch_size,
    patch_stride: in pixels.
    any_size: whether images of other sizes than the native one are taken. exact_rows: rows of
    every batch in exact mode at the native size, fewer of larger images; exact_reason: why.
    dtype_reason: why it computes in this dtype. certificate: of its precision, where one fits.
    self_check: what the check at load found, where there was one. layer_numbers: how many numbers
    the layers of a row are together, by granularity.
    """

    name: str
    kind: str
    family: str = ""
    family_reason: str = ""
    dim: int
    features_dim: int = 0
    classifier: str | None = None
    dtype: str
    device: str
    backend: str
    backend_reason: str
    weights: Weights
    preprocessing: Preprocessing
    min_size: int
    any_size: bool
    exact_rows: int = 1
    exact_reason: str = "row by row"
    aliases: tuple[str, ...] = ()
    poolings: tuple[str, ...] = ("mean", "cls", "patch-mean")
    channels: int = 3
    tokens: TokenLayout | None = None
    patch_size: int = 0
    patch_stride: int = 0
    granularities: tuple[str, ...] = GRANULARITIES
    dtype_reason: str = "as set"
    certificate: Certificate | None = None
    self_check: LoadCheck | None = None
    layer_numbers: Mapping[str, int] = field(default_factory=dict, hash=False)

    def row_numbers(self, options: EmbedOptions, height: int, width: int) -> int:
        """How many numbers the answer to a row of that many pixels has."""
        if options.layers is not None:
            return self.layer_numbers.get(options.layers, self.dim)
        if options.pooling == "tokens" and self.tokens is not None:
            rows, columns = self.grid(height, width)
            return self.dim * (rows * columns + len(self.tokens.special))
        return self.features_dim if options.pooling == "features" else self.dim

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patches of an image of that many pixels."""
        patch, stride = self.patch_size, self.patch_stride
        return (height - patch) // stride + 1, (width - patch) // stride + 1


def joined(infos: Iterable[ModelInfo]) -> ModelInfo | None:
    """One model that several devices hold, as one: `device` names them all, in order, and so does
    `backend` where it differs; None of none.
    """
    each = sorted(infos, key=lambda info: info.device)
    if len(each) < 2:
        return each[0] if each else None
    devices = ",".join(info.device for info in each)
    backends = ",".join(dict.fromkeys(info.backend for info in each))
    return replace(each[0], device=devices, backend=backends)


@dataclass(frozen=True)
class CheckReport:
    """Outcome of a self-check: relative L2 error against what is right, and what is allowed.

    same_bytes: whether nothing differed at all, where that was looked at.
    """

    error: float
    tolerance: float
    same_bytes: bool | None = None

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # False for NaN

    @property
    def problem(self) -> str:
        return f"error {self.error:.2e} is over {self.tolerance:.0e}"


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """What an embedding depends on besides model and pixels.

    layers: a granularity, or None for the final embedding alone. mean, std: replace the model's
    normalisation of uint8 pixels. exact: fixed-shape execution, independent of batch mates.
    """

    pooling: str = "mean"
    layers: str | None = None
    mean: PerChannel | None = None
    std: PerChannel | None = None
    exact: bool = False
