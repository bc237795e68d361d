"""LitServe with JSON that holds the array as base64, the usual form for tensors."""

import base64
import sys
from typing import Any

import litserve
import numpy as np
from numpy.typing import NDArray
from over_http.marks import MODEL, MarksEngine

from vim_embed.types.model_info import EMBEDDING, EmbedOptions


class Api(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        self.engine = MarksEngine()

    def decode_request(self, request: dict[str, Any]) -> NDArray[np.uint8]:
        raw = base64.b64decode(request["base64"])
        return np.frombuffer(raw, np.uint8).reshape(request["shape"])

    def predict(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.engine.run(self.engine.stage(MODEL, [pixels], EmbedOptions()))[EMBEDDING]

    def encode_response(self, output: NDArray[np.float32]) -> dict[str, Any]:
        return {EMBEDDING: output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Api(api_path="/embed"), accelerator="cpu")
    server.run(port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
