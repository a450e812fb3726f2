"""Libraries that only some uses need, each brought by an extra of the package."""

from __future__ import annotations

from importlib.util import find_spec

from mosaic.core.errors import UsageError


def needs(module: str, extra: str) -> None:
    """Raise UsageError with the command that installs what is missing.

    >>> needs("json", "none")
    """
    root, _, _ = module.partition(".")
    if find_spec(root) is None or find_spec(module) is None:
        raise UsageError(
            f"{module} is not installed; install it with: pip install 'mosaic-curation[{extra}]'"
        )
