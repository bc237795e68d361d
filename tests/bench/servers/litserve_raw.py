"""LitServe with a .npy file as a raw body: fewer copies than any form of JSON, its best form."""

# LitServe reads the annotations themselves, so they cannot be postponed.
import io
import sys
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Body, Response
from numpy.typing import NDArray

from bench.marks import MODEL, MarksEngine
from vim_embed.models.info import EMBEDDING, EmbedOptions


class Api(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        self.engine = MarksEngine()

    def decode_request(
        self, request: Annotated[bytes, Body(media_type="application/x-npy")]
    ) -> NDArray[Any]:
        pixels: NDArray[Any] = np.load(io.BytesIO(request))
        return pixels

    def predict(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        return self.engine.run(self.engine.stage(MODEL, [pixels], EmbedOptions()))[EMBEDDING]

    def encode_response(self, output: NDArray[np.float32]) -> Response:
        file = io.BytesIO()
        np.save(file, output)
        return Response(file.getvalue(), media_type="application/x-npy")


if __name__ == "__main__":
    server = litserve.LitServer(Api(api_path="/embed"), accelerator="cpu")
    server.run(port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
