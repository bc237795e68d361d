"""Load on a service and what it answered: rates, latencies, a report."""
