"""The routes, a file a part of the interface."""
