"""The scans of training and their gradients, beside autograd of the plain recurrence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from training.chunks import Chunks
from training.native import NativeTrainingOps, training_ops
from training.scan import TrainingOps, selective_scan

from support.fixtures_vim import relative_l2
from training import native
from vim_embed.kernels.cpu.compile import NativeUnavailable
from vim_embed.kernels.ops import Direction, MixerOps
from vim_embed.kernels.reference import ReferenceOps
from vim_embed.models.vim import Vim, VimConfig, init_random

RANK = 3


def inputs(length: int, channels: int, states: int) -> list[Tensor]:
    """Leaves: z, then the fields of each direction; half the scales of Mamba's."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    batch = 3
    leaves = [normal(batch, length, channels)]
    for _ in range(2):
        leaves += [
            normal(batch, length, channels),
            normal(batch, length, RANK),
            normal(channels, RANK) / RANK**0.5,
            normal(channels) - 1,
            normal(channels, states),
            normal(batch, length, states),
            normal(batch, length, states),
            normal(channels),
        ]
    return [leaf.requires_grad_() for leaf in leaves]


def plain_scan(inputs: Direction, *, reverse: bool) -> Tensor:
    """The recurrence of the reference without its writes into a tensor, for autograd."""
    steps = torch.nn.functional.softplus(inputs.delta + inputs.delta_bias)
    rates = -inputs.A_log.exp()
    state = torch.zeros(len(inputs.u), *rates.shape)
    out: dict[int, Tensor] = {}
    order = range(inputs.u.shape[1])
    for t in reversed(order) if reverse else order:
        drive = (steps[:, t] * inputs.u[:, t])[..., None] * inputs.B[:, t, None]
        state = torch.exp(steps[:, t, :, None] * rates) * state + drive
        out[t] = (state * inputs.C[:, t, None]).sum(-1) + inputs.D * inputs.u[:, t]
    return torch.stack([out[t] for t in order], dim=1)


@pytest.fixture(scope="module")
def native_ops() -> NativeTrainingOps:
    try:
        return NativeTrainingOps()
    except NativeUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("length", "chunk"), [(1, 16), (7, 3), (16, 16), (33, 8), (20, 64)])
def test_output_and_every_gradient(length: int, chunk: int) -> None:
    compare_scan(TrainingOps(chunk), inputs(length, channels=5, states=4))


@pytest.mark.parametrize(("length", "channels"), [(1, 5), (7, 16), (16, 16), (37, 40)])
def test_in_cpp(native_ops: NativeTrainingOps, length: int, channels: int) -> None:
    compare_scan(native_ops, inputs(length, channels, states=16))


def test_in_cpp_for_what_the_source_does_not_know(native_ops: NativeTrainingOps) -> None:
    """Another number of states than a vector's, and no gate, go to the scan in torch."""
    leaves = inputs(7, channels=5, states=4)
    compare_scan(native_ops, leaves)
    one, two = Direction(*leaves[1:9]), Direction(*leaves[9:])
    found = native_ops.scan(one, two, None)
    assert relative_l2(found.detach(), ReferenceOps().scan(one, two, None).detach()) < 1e-5


def compare_scan(ops: MixerOps, leaves: list[Tensor]) -> None:
    length = leaves[0].shape[1]
    one, two = Direction(*leaves[1:9]), Direction(*leaves[9:])
    gate = torch.nn.functional.silu(leaves[0])
    right = 0.5 * (plain_scan(one, reverse=False) + plain_scan(two, reverse=True)) * gate
    found = ops.scan(one, two, leaves[0])
    assert relative_l2(found.detach(), right.detach()) < 1e-5
    assert relative_l2(found.detach(), ReferenceOps().scan(one, two, leaves[0]).detach()) < 1e-5
    weights = torch.randn(right.shape, generator=torch.Generator().manual_seed(9))
    expected = torch.autograd.grad((right * weights).sum(), leaves)
    gradients = torch.autograd.grad((found * weights).sum(), leaves)
    for mine, theirs in zip(gradients, expected, strict=True):
        if length == 1 and not theirs.any():  # the first token decays nothing
            assert not mine.any()
        else:
            assert relative_l2(mine, theirs) < 1e-5


Make = Callable[[MixerOps], tuple[Tensor, ...]]


def compare(ops: MixerOps, make: Make, leaves: list[Tensor]) -> None:
    """Outputs and gradients beside autograd of the reference."""
    results = [make(each) for each in (ops, ReferenceOps())]
    slopes = [torch.randn(out.shape) for out in results[1]]
    gradients = [torch.autograd.grad(outputs, leaves, slopes) for outputs in results]
    for mine, theirs in zip(
        *[[*o, *g] for o, g in zip(results, gradients, strict=True)], strict=True
    ):
        assert relative_l2(mine.detach(), theirs.detach()) < 1e-5


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "channels"), [(2, 5), (37, 40)])
def test_convolution_in_cpp(
    native_ops: NativeTrainingOps, length: int, channels: int, reverse: bool
) -> None:
    x = torch.randn(3, length, 2 * channels, requires_grad=True)
    weight, bias = torch.randn(channels, 4), torch.randn(channels)
    leaves = [x, weight.requires_grad_(), bias.requires_grad_()]
    compare(
        native_ops,
        lambda ops: (ops.conv_silu(x[..., channels:], weight, bias, reverse=reverse),),
        leaves,
    )


@pytest.mark.parametrize("dim", [16, 37])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("outputs", [slice(2), slice(1), slice(1, 2)])
def test_norm_in_cpp(native_ops: NativeTrainingOps, dim: int, first: bool, outputs: slice) -> None:
    """Also where the gradient comes from one of the two outputs alone."""
    hidden, stream = (torch.randn(3, 7, dim, requires_grad=True) for _ in range(2))
    weight = torch.randn(dim, requires_grad=True)
    residual = None if first else stream
    leaves = [hidden] if first else [hidden, stream]
    leaves += [weight] if outputs.start is None else []

    def make(ops: MixerOps) -> tuple[Tensor, ...]:
        both: tuple[Tensor, ...] = ops.add_norm(hidden, residual, weight, 1e-5)
        return both[outputs]

    compare(native_ops, make, leaves)


def test_a_model_in_chunks_and_threads(native_ops: NativeTrainingOps) -> None:
    """A loss over the whole batch, computed by chunks: autograd's value and gradients."""
    model = Vim(VimConfig(dim=32, depth=2, image_size=32, patch_size=8, stride=8), native_ops)
    init_random(model)
    images = torch.randn(10, 3, 32, 32)

    def loss(codes: Tensor) -> Tensor:
        return (codes @ codes.t()).logsumexp(1).mean()

    parameters = list(model.parameters())
    value = Chunks(2, 3).gradients(lambda x: model(x).mean(1), loss, images, parameters)
    found = [parameter.grad for parameter in parameters]
    model.use_ops(TrainingOps())
    codes = model(images).mean(1)
    expected = torch.autograd.grad(loss(codes), parameters)
    assert float(value) == pytest.approx(float(loss(codes.detach())), rel=1e-5)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine is not None
        assert relative_l2(mine, theirs) < 1e-4


def test_without_a_compiler_torch_trains_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise NativeUnavailable("no C++ compiler")

    monkeypatch.setattr(native, "_library", fail)
    assert isinstance(training_ops(torch.device("cpu")), TrainingOps)
    assert "many times slower: no C++ compiler" in capsys.readouterr().out


def test_gradients_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    arguments = [normal(2, 1, 5, 2), normal(2, 1, 5, 2).exp(), -normal(2, 3, 2).exp()]
    arguments += [normal(2, 1, 5, 3), normal(2, 1, 5, 3)]
    leaves = [each.requires_grad_() for each in arguments]
    assert torch.autograd.gradcheck(lambda u, d, a, b, c: selective_scan(u, d, a, b, c, 2), leaves)
