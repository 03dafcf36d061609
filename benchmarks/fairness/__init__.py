"""How well the limiter does: exact runs under virtual time (``make bench-fairness``, docs/fairness.md)."""
