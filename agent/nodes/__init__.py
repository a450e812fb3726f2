"""The steps of a round as thin functions (context, state) -> update."""
