"""`python -m gemmule` and the `gemmule` command."""

import sys

from gemmule.cli import run_command_line


def main() -> None:
    """Runs the command line and exits with its code."""
    sys.exit(run_command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
