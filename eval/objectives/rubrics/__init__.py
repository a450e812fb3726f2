"""Rubrics: the language of an objective that is a YAML file, and two published objectives in it."""
