"""Generators: implementations of the seam in `eval.generators.base`."""
