"""Judges: implementations of the seam in `eval.judge`."""
