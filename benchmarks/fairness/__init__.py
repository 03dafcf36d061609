"""Measure how well the limiter finds capacity (``make bench-fairness``, docs/fairness.md)."""
