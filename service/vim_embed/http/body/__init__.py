"""Request bodies: read from the connection into bounded memory, without their coding."""
