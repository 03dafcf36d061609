"""``python -m worker`` is ``queue-worker run``."""

import sys

from .cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]], prog_name="python -m worker")
