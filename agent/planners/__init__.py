"""Planners: implementations of the seam in `agent.planner`."""
