"""MOSAIC: an LLM-agent driven controller of training-data curation.

This package holds both ends of the house: the language every folder shares (errors, types, journal,
store) and the application a person starts (`python -m mosaic`).
"""

__version__ = "0.2.0"
