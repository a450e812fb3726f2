"""Generators: implementations of the seam in `eval.generator`."""
