"""Layer-wise extraction: pooled outputs of a model's modules, by forward hooks.

The granularities are platonic-universe's: `blocks` (top-level modules and the members of module
lists), `residual` (modules with children), `leaves` (modules without), `all`. A module that a
forward does not call (a weight that a fused kernel reads) has no output and so no entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

LAST = "last_hidden_state"


def layer_modules(module: nn.Module, granularity: str) -> dict[str, nn.Module]:
    """The modules of a granularity by name, in definition order, module lists left out."""
    return {
        name: child
        for name, child in module.named_modules()
        if name and not isinstance(child, nn.ModuleList) and _wanted(module, name, granularity)
    }


@contextmanager
def capture(
    modules: dict[str, nn.Module], pool: Callable[[Tensor], Tensor]
) -> Iterator[dict[str, Tensor]]:
    """Within the context, every call of a module adds its pooled output under its name."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(child: nn.Module, _inputs: object, output: object) -> None:
            tensor = _observed(child, output)
            if tensor is not None:
                found[name] = pool(tensor)

        return keep

    handles = [child.register_forward_hook(hook(name)) for name, child in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _wanted(root: nn.Module, name: str, granularity: str) -> bool:
    if granularity == "all":
        return True
    leaf = not any(True for _ in root.get_submodule(name).children())
    if granularity != "blocks":
        return leaf is (granularity == "leaves")
    parent, _, _ = name.rpartition(".")
    return not parent or isinstance(root.get_submodule(parent), nn.ModuleList | nn.Sequential)


def _observed(module: nn.Module, output: object) -> Tensor | None:
    own = getattr(module, "observed", None)
    if own is not None:
        tensor: Tensor = own(output)
        return tensor
    if isinstance(output, tuple):
        output = output[0] if output else None
    output = getattr(output, "last_hidden_state", output)
    return output if isinstance(output, Tensor) else None
