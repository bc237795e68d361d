"""Sockets, TLS, connections and processes under uvicorn. Knows the application, not its routes."""
