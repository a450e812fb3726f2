"""Figures with a command: `python -m benchmarks NAME`."""
