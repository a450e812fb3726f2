"""Makes the miniature laboratory: a base model, pools, suites and a config. Data, not a mode."""
