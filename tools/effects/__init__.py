"""What may be done: each a step of the journal."""
