"""Objectives: L3 items, the rules L3 to L2 to L1, and slices; one file each."""
