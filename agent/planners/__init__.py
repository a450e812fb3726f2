"""Planners: implementations of the seam in `agent.planners.base`."""
