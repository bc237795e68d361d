"""The ASGI application: bodies, formats, routes, one error shape. Knows no sockets."""
