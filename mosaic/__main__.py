"""`python -m mosaic`: the command line. Nothing heavy is imported before a command needs it."""

import os

# Two OpenMP threads waiting for each other make work on small models many times slower
# (docs/architecture.md).
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")


def main() -> None:
    """Entry point of the `mosaic` script."""
    from mosaic.app.cli.main import main as command_line

    command_line()


if __name__ == "__main__":
    main()
