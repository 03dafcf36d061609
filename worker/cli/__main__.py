"""``python -m worker.cli`` is ``queue-worker``."""

from . import main

if __name__ == "__main__":
    main(prog_name="queue-worker")
