"""Storing a dead letter: tries, with waits, until the broker has confirmed it."""

from __future__ import annotations

from .events import DeadLettered, DeadLetterNotStored
from .model import DeadLetter
from .policy.retry import Backoff
from .ports import BrokerUnavailableError
from .services import Services

_TRIES = 5
"""Attempts to store a dead letter before its message is returned to the queue."""
_WAIT = Backoff(first_wait=0.5, max_wait=4.0)
"""Waits between those attempts: 7.5 s in all, longer than the election of a stream's leader takes."""


async def store_dead_letter(services: Services, letter: DeadLetter) -> bool:
    """Store a dead letter, and return whether that succeeded; without dead letters it is only logged."""
    stored = services.config.dead_letters
    if stored and not await _try_to_store(services, letter):
        return False
    services.emit(DeadLettered(letter, stored))
    return True


async def _try_to_store(services: Services, letter: DeadLetter) -> bool:
    for number in range(1, _TRIES + 1):
        try:
            await services.queue.store_dead_letter(letter)
        except BrokerUnavailableError as error:
            services.emit(DeadLetterNotStored(letter, str(error)))
            if number < _TRIES:
                await services.timers.wait(_WAIT.ceiling(number), "dead letter")
        else:
            return True
    return False
