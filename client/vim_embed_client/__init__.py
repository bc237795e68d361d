"""vim-embed client: pixels or images in, embedding arrays out, over HTTP.

`Client().embed(pixel_values).embeddings`; the service is found through VIM_EMBED_URL.
"""

from __future__ import annotations

from importlib.metadata import version

from vim_embed_client.async_client import AsyncClient
from vim_embed_client.client import Client
from vim_embed_client.errors import (
    BadAnswerError,
    ConfigurationError,
    ConflictError,
    ConnectionLostError,
    DeadlineExceededError,
    DeadlineExpiredError,
    DrainingError,
    ForbiddenError,
    HeadTooLargeError,
    InputError,
    InternalServerError,
    InvalidInputError,
    LocalServerError,
    MalformedRequestError,
    MethodNotAllowedError,
    NotAcceptableError,
    NotFoundError,
    NotReadyError,
    OutputError,
    PayloadTooLargeError,
    ProvenanceChangedError,
    QueueFullError,
    RequestTimeoutError,
    ResumeError,
    ServerUnreachableError,
    ServiceNotInstalledError,
    StatusError,
    TimedOutError,
    TooManyConnectionsError,
    TransportError,
    UnauthorizedError,
    UnexpectedStatusError,
    UnknownModelError,
    UnsupportedEncodingError,
    UnsupportedMediaTypeError,
    VimEmbedError,
    WorkerFailedError,
)
from vim_embed_client.local_server import LocalServer
from vim_embed_client.options import EmbedOptions, ImageOptions
from vim_embed_client.pixels import PixelValueWarning
from vim_embed_client.results import Embeddings, LayerEmbeddings, Provenance
from vim_embed_pixels.sizes import ImageSizeWarning

__all__ = [
    "AsyncClient",
    "BadAnswerError",
    "Client",
    "ConfigurationError",
    "ConflictError",
    "ConnectionLostError",
    "DeadlineExceededError",
    "DeadlineExpiredError",
    "DrainingError",
    "EmbedOptions",
    "Embeddings",
    "ForbiddenError",
    "HeadTooLargeError",
    "ImageOptions",
    "ImageSizeWarning",
    "InputError",
    "InternalServerError",
    "InvalidInputError",
    "LayerEmbeddings",
    "LocalServer",
    "LocalServerError",
    "MalformedRequestError",
    "MethodNotAllowedError",
    "NotAcceptableError",
    "NotFoundError",
    "NotReadyError",
    "OutputError",
    "PayloadTooLargeError",
    "PixelValueWarning",
    "Provenance",
    "ProvenanceChangedError",
    "QueueFullError",
    "RequestTimeoutError",
    "ResumeError",
    "ServerUnreachableError",
    "ServiceNotInstalledError",
    "StatusError",
    "TimedOutError",
    "TooManyConnectionsError",
    "TransportError",
    "UnauthorizedError",
    "UnexpectedStatusError",
    "UnknownModelError",
    "UnsupportedEncodingError",
    "UnsupportedMediaTypeError",
    "VimEmbedError",
    "WorkerFailedError",
    "__version__",
]
__version__ = version("vim-embed")
