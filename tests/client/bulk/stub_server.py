"""The real service with the engine without torch, as a process of its own: prints its port."""

from __future__ import annotations

import asyncio
import sys

import uvicorn

from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings


async def main(image_size: int) -> None:
    app = create_app(Settings(), ArithmeticEngine(image_size=image_size))
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
