"""Where training runs: implementations of the seam in `tools.executors.base`."""
