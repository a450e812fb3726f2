"""Batch jobs that label pools and suites."""
