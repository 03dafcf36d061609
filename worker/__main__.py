"""``python -m worker`` is ``queue-worker run``."""

from .entry import module

if __name__ == "__main__":
    module()
