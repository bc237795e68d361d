"""A plain FastAPI endpoint that takes a .npy body and calls the engine in each request."""

from __future__ import annotations

import io
import sys

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from over_http.marks import MODEL, MarksEngine

from vim_embed.types.model_info import EMBEDDING, EmbedOptions

app = FastAPI()
engine = MarksEngine()
options = EmbedOptions()


@app.post("/embed")
async def embed(request: Request) -> Response:
    pixels = np.load(io.BytesIO(await request.body()))
    outputs = engine.run(engine.stage(MODEL, [pixels], options))
    file = io.BytesIO()
    np.save(file, outputs[EMBEDDING])
    return Response(file.getvalue(), media_type="application/x-npy")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
