"""Makes: a mixture becomes a training set, a training set becomes an adapter."""
