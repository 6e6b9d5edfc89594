"""The command line: `backprop`."""

from __future__ import annotations

import sys


def main() -> None:
    """What the console script runs. No traceback reaches the user, unless BACKPROP_DEBUG is set."""
    from service.cli.failure import explained

    with explained():
        from service.cli.app import app  # here, so that an error while loading is explained, too

        app()
    sys.exit(0)
