"""Bodies and answers: what their bytes mean."""
