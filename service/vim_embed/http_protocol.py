"""uvicorn's HTTP protocol with our error shape for what it refuses itself.

A request that cannot be parsed never reaches the application.
"""

from __future__ import annotations

import json
import uuid

from vim_embed.errors import MalformedRequest
from vim_embed.receiving import ReceivingProtocol


class ErrorShapeProtocol(ReceivingProtocol):
    """Answers what is no HTTP request as every other bad request, and closes the connection."""

    def send_400_response(self, msg: str) -> None:
        request_id = uuid.uuid4().hex
        body = json.dumps(MalformedRequest(msg).body(request_id)).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nX-Request-ID: {request_id}\r\n"
            "Connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
