"""Measures: a model becomes judgments, these become labels, scores and profiles."""
