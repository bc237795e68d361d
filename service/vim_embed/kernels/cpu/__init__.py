"""C++ kernels for CPUs, compiled at first use or shipped with the package."""
