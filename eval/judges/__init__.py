"""Judges: implementations of the seam in `eval.judges.base`."""
