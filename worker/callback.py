"""Telling the result: one POST, tried again a few times of its own, never at the price of another invocation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import trio

from .bench import Bench
from .events import CallbackPosted
from .model import Callback, Invocation
from .policy.callbacks import delivered, worth_another


async def call_back(callback: Callback, invocation: Invocation, bench: Bench, failed_once: Callable[[], None]) -> None:
    """Post until it is delivered or given up. *failed_once* is called before the first wait for another try."""
    rules = bench.rules
    for attempt in count(1):
        began = trio.current_time()
        result = await bench.callbacks.post(callback)
        again = attempt < rules.callback_attempts and worth_another(result)
        wait = rules.callback_backoff.delay(attempt, dice=bench.dice()) if again else None
        bench.emit(CallbackPosted(invocation, result, delivered(result), wait, trio.current_time() - began))
        if wait is None:
            return
        failed_once()
        await bench.retries.wait(wait, "callback")
