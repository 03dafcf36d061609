"""Posting a result: one POST, retried a few times, and never at the price of another invocation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import trio

from .events import CallbackPosted
from .model import Callback, Invocation
from .policy.report import is_delivered, is_retriable
from .services import Services


async def call_back(
    callback: Callback, invocation: Invocation, services: Services, failed_once: Callable[[], None]
) -> None:
    """Post until it is delivered or given up. *failed_once* is called before each wait for another try."""
    config = services.config
    for attempt in count(1):
        began = trio.current_time()
        result = await services.callbacks.post(callback)
        retry = attempt < config.callback_attempts and is_retriable(result)
        wait = config.callback_backoff.delay(attempt, draw=services.rng()) if retry else None
        services.emit(CallbackPosted(invocation, result, is_delivered(result), wait, trio.current_time() - began))
        if wait is None:
            return
        failed_once()
        await services.timers.wait(wait, "callback")
