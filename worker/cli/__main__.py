"""``python -m worker.cli`` is ``queue-worker``."""

from . import program

if __name__ == "__main__":
    program()
