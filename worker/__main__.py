"""``python -m worker`` is ``queue-worker run``."""

import sys

from .cli import main, stop_before_it_works

if __name__ == "__main__":
    stop_before_it_works()
    main(["run", *sys.argv[1:]], prog_name="python -m worker")
