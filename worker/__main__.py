"""``python -m worker`` is ``queue-worker run``."""

import sys

from .cli import exit_on_stop_signals, main

if __name__ == "__main__":
    exit_on_stop_signals()
    main(["run", *sys.argv[1:]], prog_name="python -m worker")
