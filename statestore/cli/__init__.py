"""The `statestore` command: look at a store, check it, tidy it. Never loads torch."""

import sys

try:
    from statestore.cli.main import main
except KeyboardInterrupt:  # imports take a moment: then too it ends without a traceback
    sys.stderr.write("statestore: stopped\n")
    raise SystemExit(130) from None

__all__ = ["main"]
