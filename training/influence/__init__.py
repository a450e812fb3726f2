"""How much a little more of some data would change a loss: gradients, curvature, and IDEAL's rule."""
