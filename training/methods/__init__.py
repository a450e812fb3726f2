"""Methods of training: a job in, an adapter out."""
