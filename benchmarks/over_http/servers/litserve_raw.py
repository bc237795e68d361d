"""LitServe with a .npy file as a raw body: fewer copies than any form of JSON, its best form."""

# LitServe reads the annotations themselves, so they cannot be postponed.
import io
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Depends, Request, Response
from numpy.typing import NDArray
from over_http.marks import MODEL, MarksEngine

from vim_embed.types.model_info import EMBEDDING, EmbedOptions


@dataclass(repr=False)
class Raw:
    """A body. LitServe writes every request into a log line that is not shown, and the text of
    plain bytes costs it more than all the rest.
    """

    content: bytes


async def read_raw(request: Request) -> Raw:
    return Raw(await request.body())


class Api(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        self.engine = MarksEngine()

    def decode_request(self, request: Annotated[Raw, Depends(read_raw)]) -> NDArray[Any]:
        pixels: NDArray[Any] = np.load(io.BytesIO(request.content))
        return pixels

    def predict(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        return self.engine.run(self.engine.stage(MODEL, [pixels], EmbedOptions()))[EMBEDDING]

    def encode_response(self, output: NDArray[np.float32]) -> Response:
        file = io.BytesIO()
        np.save(file, output)
        return Response(file.getvalue(), media_type="application/x-npy")


if __name__ == "__main__":
    server = litserve.LitServer(Api(api_path="/embed"), accelerator="cpu", fast_queue=True)
    server.run(port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
