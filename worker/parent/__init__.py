"""Several processes as one worker: a parent that starts them, stops them, and shows their metrics as one worker's.

The parent does no work itself and imports none of the modules that do.
"""

from __future__ import annotations

import signal


def exit_text(code: int) -> str:
    """Describe how a process ended, as the predicate of a sentence."""
    if code >= 0:
        return f"ended with exit code {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}"  # a real-time signal has no name
