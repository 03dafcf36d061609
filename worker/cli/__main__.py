"""``python -m worker.cli`` is ``queue-worker``."""

from ..entry import program

if __name__ == "__main__":
    program()
