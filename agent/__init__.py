"""Decides: reads an observation, emits a plan, checks it, runs the rounds."""
