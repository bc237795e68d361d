"""A plain FastAPI endpoint that looks at the bytes of a raw body, its best form: nothing is copied
that `await request.body()` has not copied. The engine is called in each request.
"""

from __future__ import annotations

import io
import sys

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from over_http.marks import IMAGE_SIZE, MODEL, MarksEngine

from vim_embed.types.model_info import EMBEDDING, EmbedOptions

app = FastAPI()
engine = MarksEngine()
options = EmbedOptions()


@app.post("/embed")
async def embed(request: Request) -> Response:
    body = np.frombuffer(await request.body(), np.uint8)
    pixels = body.reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
    outputs = engine.run(engine.stage(MODEL, [pixels], options))
    file = io.BytesIO()
    np.save(file, outputs[EMBEDDING])
    return Response(file.getvalue(), media_type="application/x-npy")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
