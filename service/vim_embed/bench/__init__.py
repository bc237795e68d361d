"""What measures models and kernels on this machine, beside public ones."""
