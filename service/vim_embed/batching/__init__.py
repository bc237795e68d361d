"""Requests of rows become batches: the queue, the workers that run them and who looks after these.

Knows engines; neither HTTP nor asyncio."""
