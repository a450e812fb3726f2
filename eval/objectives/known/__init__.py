"""Known answers that ship with the package, for objectives that a model judges."""
