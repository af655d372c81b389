"""`python -m gemmule` and the `gemmule` command."""

import contextlib
import os
import signal
import sys
from typing import NoReturn

from gemmule._interrupt import INTERRUPTED, interrupted, watch


def main() -> NoReturn:
    """Runs the command line and exits with its code."""
    code = INTERRUPTED
    try:
        watch()
        from gemmule.cli import run_command_line

        code = run_command_line(sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except (ImportError, SystemError):
        if not interrupted():
            raise
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Ends the process without the interpreter's teardown: freeing a vocabulary takes a quarter second."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
