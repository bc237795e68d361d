"""A plain FastAPI endpoint that takes nested JSON lists and calls the engine in each request."""

from __future__ import annotations

import sys

import numpy as np
import uvicorn
from fastapi import FastAPI
from over_http.marks import MODEL, MarksEngine
from pydantic import BaseModel

from vim_embed.types.model_info import EMBEDDING, EmbedOptions

app = FastAPI()
engine = MarksEngine()
options = EmbedOptions()


class Images(BaseModel):
    inputs: list[list[list[list[int]]]]


@app.post("/embed")
async def embed(images: Images) -> dict[str, list[list[float]]]:
    pixels = np.array(images.inputs, dtype=np.uint8)
    outputs = engine.run(engine.stage(MODEL, [pixels], options))
    return {EMBEDDING: outputs[EMBEDDING].tolist()}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
