"""MOSAIC: an LLM-agent driven controller of training-data curation.

This package holds both ends of the house: the language every folder shares (errors, types, journal,
store) and the application a person starts (`python -m mosaic`, or from Python):

    import mosaic

    run = mosaic.run("mosaic.yaml")        # as `python -m mosaic run mosaic.yaml`
    run = mosaic.open_run("last")          # a run that was made before
    run.report().chosen, run.rounds[0].scores, run.to_pandas()

What these three names need is imported when one of them is first used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mosaic.app.python_api import Run, open_run, run

__all__ = ["Run", "__version__", "open_run", "run"]
__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    if name in ("Run", "open_run", "run"):
        from mosaic.app import python_api

        return getattr(python_api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
