"""Pools and suites in ordinary English for any base model. The substances and their harm are made up."""
