"""From a name to a loaded model: catalogue, Hub, checkpoint files and their limits."""
