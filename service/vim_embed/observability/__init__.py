"""What an operator sees: metrics, recent activity, traces, logs without secrets."""
