"""The JSON part of an Open Inference Protocol request, checked by pydantic."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

DATATYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
}
_Side = Annotated[int, Field(strict=True, ge=1)]
_Text = Annotated[str, Field(max_length=1024)]  # no text of a request is long


class _Message(BaseModel):
    """A part of a request, where null is as good as absent."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {key: part for key, part in value.items() if part is not None}


class InputParameters(_Message):
    """Of one input. Shared memory is not offered."""

    model_config = ConfigDict(extra="forbid")

    binary_data_size: Annotated[StrictInt, Field(ge=0)] | None = None


class InputTensor(_Message):
    """One input: its data here, or among the raw bytes.

    data: whether they are here; the lists themselves never become Python objects.
    """

    name: _Text
    shape: Annotated[list[_Side], Field(min_length=1, max_length=8)]
    datatype: _Text
    parameters: InputParameters = InputParameters()
    data: StrictBool | None = None


class OutputParameters(_Message):
    """Of one requested output."""

    model_config = ConfigDict(extra="forbid")

    binary_data: StrictBool | None = None


class RequestedOutput(_Message):
    """One requested output, by name."""

    name: _Text
    parameters: OutputParameters = OutputParameters()


class InferParameters(_Message):
    """Of a request. Those of the schedule policy that the queue does not know have no effect."""

    model_config = ConfigDict(extra="forbid")

    pooling: _Text = "mean"
    layers: _Text | None = None
    exact: bool | None = None
    mean: _Text | None = None
    std: _Text | None = None
    dtype: Literal["FP32", "FP16", "float32", "float16"] = "FP32"
    timeout: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0  # microseconds; 0: the server's
    binary_data_output: bool = False
    priority: int = 0
    sequence_id: int | _Text = 0
    sequence_start: bool = False
    sequence_end: bool = False

    @property
    def output_dtype(self) -> np.dtype[Any]:
        return DATATYPES["FP16" if self.dtype in ("FP16", "float16") else "FP32"]


class InferRequest(_Message):
    """The JSON part of a request."""

    id: _Text | None = None
    inputs: list[InputTensor]
    outputs: list[RequestedOutput] = []
    parameters: InferParameters = InferParameters()

    def is_binary(self, output: str) -> bool:
        """Whether `output` is to come back as raw bytes."""
        own = {o.name: o.parameters.binary_data for o in self.outputs}.get(output)
        return self.parameters.binary_data_output if own is None else own
