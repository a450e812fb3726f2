"""Complete configs, and the loop without the graph."""
