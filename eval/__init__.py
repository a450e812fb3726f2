"""Measures: a model becomes judgments, judgments become labels, labels become scores and profiles."""
