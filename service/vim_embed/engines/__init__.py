"""What runs batches on a device: the interface, the torch engine, a test double, several devices as
one.

Knows models and batches of pixels, not requests."""
