"""The longest wait of any test.

A wait ends on an event. Where the event does not happen, the wait ends after :data:`LAST_RESORT` and the test fails, so
the number must be far above what the slowest machine takes. No test may have a bound of its own on the wall clock; one
that measures a time or a rate takes virtual time, or has the mark ``quiet``.
"""

LAST_RESORT = 120.0
"""Seconds. Only a defect lets a wait take so long, not a busy machine."""
