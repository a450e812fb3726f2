"""From a pool to a training set: rows, mixtures, imports, contamination, provenance."""
