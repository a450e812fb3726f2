"""Acts: the verbs an agent may use, each asked of the journal before it runs."""
