"""Every noun that is written down, a page a group."""
