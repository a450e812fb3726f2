"""`python -m mosaic`: the command line. Nothing heavy is imported before a command needs it."""

from mosaic.app.environment import prepare

prepare()


def main() -> None:
    """Entry point of the `mosaic` script."""
    from mosaic.app.cli.main import main as command_line

    command_line()


if __name__ == "__main__":
    main()
