"""The tag of a wheel: of this platform where it carries prebuilt CPU kernels, else of any.

The libraries have a plain C interface, so one wheel serves every version of Python.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PREBUILT = Path("service/vim_embed/kernels/cpu/_prebuilt")


class PlatformWheel(BuildHookInterface[Any]):
    """Sets the tag of VIM_EMBED_WHEEL_PLATFORM; scripts/build_wheels.py fills the folder."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        platform = os.environ.get("VIM_EMBED_WHEEL_PLATFORM", "")
        if self.target_name != "wheel" or version != "standard" or not platform:
            return
        libraries = list((Path(self.root) / PREBUILT).glob("*.so"))
        if not libraries:
            raise RuntimeError(f"a wheel for {platform} needs libraries in {PREBUILT}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"] = [f"{PREBUILT}/*.so"]
