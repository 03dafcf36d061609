"""The first tries of a callback, which its message waits for: until it is delivered, stored, or given up.

The first try begins at once, outside of the slots while there is room there (:mod:`worker.policy.receivers`). If it
fails, the callback is stored at the broker, and only then the message is settled; :mod:`worker.callback_retries` sends
it again. While it cannot be stored, it is tried again from memory and stored again, in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import trio

from .dead_letters import store_dead_letter
from .events import CallbackDiscarded, CallbackNotStored, CallbackPosted, CallbackStored, WorkCrashed
from .heartbeat import Lease
from .model import Busy, Callback, CallbackResult, DeadLetter, Delivery, Invocation, PostResult, Refused, StoredCallback
from .policy.decide import parse_retry_after
from .policy.report import is_delivered, is_retriable, origin_of
from .policy.stored_callback import CALLBACK_KIND, encode_callback
from .ports import BodyLostError, BrokerUnavailableError
from .services import Services

SILENT = "not sent: the receiver answers no callback, and there is no room for more that wait"


@dataclass(slots=True)
class Tried:
    """One try of a callback."""

    result: CallbackResult
    asked: float
    """Wait (s) that the receiver asked for; 0 for none."""
    began: float
    ended: float


async def post_once(services: Services, callback: Callback, delivery: Delivery) -> Tried:
    """Post a callback once; an error of any kind is a failed try, so that no result is lost without a line.

    Raises:
        BodyLostError: the stored body is lost.
    """
    began = trio.current_time()
    result: PostResult
    try:
        result = await services.callbacks.post(callback)
    except BodyLostError:
        raise
    except Exception as error:  # noqa: BLE001 -- Cancelled is no Exception
        services.emit(WorkCrashed(delivery, error))
        result = f"a bug in the worker: {error!r}"
    asked = 0.0
    if isinstance(result, Busy):
        asked = parse_retry_after(result.retry_after, now=services.utc_now()) or 0.0
        result = result.status
    return Tried(result, asked, began, trio.current_time())


def note_result(services: Services, receiver: str, tried: Tried) -> None:
    """Note in the schedule of stored callbacks how a receiver has answered."""
    if is_retriable(tried.result):
        draw = services.rng()
        services.schedule.failed(receiver, began=tried.began, now=tried.ended, asked=tried.asked, draw=draw)
    else:
        services.schedule.succeeded(receiver)


def describe_result(result: CallbackResult) -> str:
    """Describe the result of a try, for the reason of a dead letter."""
    if isinstance(result, Refused):
        return result.reason
    return f"status {result}" if isinstance(result, int) else result


def refusal_reason(result: CallbackResult) -> str:
    """Return the reason of the dead letter of a callback that is not sent again, because of this result."""
    refused_by = "rules forbid the receiver" if isinstance(result, Refused) else "receiver refused the callback"
    return f"the {refused_by}: {describe_result(result)}"


@dataclass(slots=True, eq=False)
class FirstCallback:
    """A callback whose message is not settled yet."""

    services: Services
    lease: Lease
    invocation: Invocation
    callback: Callback
    attempt: int
    """Number of the attempt whose result it is."""
    leave_slot: Callable[[], None]
    """Frees the slot of its message."""
    let_stand: Callable[[], None]
    """Lets the verdict on its message stand, also if this is cancelled now."""

    async def run(self) -> None:
        """Try until the callback is delivered, stored or given up.

        If the drain's time ends before that, store it in a short time in which nothing cancels it.
        """
        done = False
        try:
            await self._try_with_room()
            done = True
        finally:
            config, lost = self.services.config, self.lease.lost
            if not done and config.callback_durable and not lost:
                with trio.move_on_after(config.settle_within / 3, shield=True):
                    if await self._store(0.0):
                        self.let_stand()

    async def _try_with_room(self) -> None:
        services, receiver, now = self.services, origin_of(self.callback.url), trio.current_time()
        size = len(self.callback.body) + len(self.lease.delivery.payload)
        with services.receivers.waiting(receiver, size, now) as room:
            if room:
                self.leave_slot()
            elif services.config.callback_durable and await self._store(0.0):
                return
            elif services.receivers.is_silent(receiver, now):
                await self._give_up(receiver, SILENT)
                return
            await self._try_until_kept(receiver)

    async def _try_until_kept(self, receiver: str) -> None:
        services, config, first_at = self.services, self.services.config, trio.current_time()
        for number in count(1):
            tried = await post_once(services, self.callback, self.lease.delivery)
            if isinstance(tried.result, int):
                services.receivers.answered(receiver, tried.ended)
            if config.callback_durable:
                note_result(services, receiver, tried)
            again = is_retriable(tried.result) and (config.callback_durable or number < config.callback_attempts)
            wait = self._wait(number, tried) if again else None
            self._emit(receiver, tried.result, wait, tried.ended - tried.began)
            if is_delivered(tried.result):
                return
            if wait is None:
                await self._keep_letter(refusal_reason(tried.result))
                return
            if config.callback_durable:
                if await self._store(wait):
                    return
                late = trio.current_time() - first_at >= services.leases.terms.ack_wait
                why = f"the callback could not be stored, and failed: {describe_result(tried.result)}"
                if number >= config.callback_attempts and (await self._keep_letter(why, last=late) or late):
                    return
                wait = config.callback_backoff.delay(number, draw=services.rng())
            else:
                self.let_stand()
            await services.timers.wait(wait, "callback")

    def _wait(self, number: int, tried: Tried) -> float:
        services, config = self.services, self.services.config
        if config.callback_durable:
            return services.schedule.wait_after(1, age=0.0, asked=tried.asked, draw=services.rng())
        return config.callback_backoff.delay(number, draw=services.rng())

    def _emit(self, receiver: str, result: CallbackResult, retry_in: float | None, duration: float) -> None:
        call_id, function = self.invocation.call_id, self.invocation.label
        self.services.emit(
            CallbackPosted(call_id, function, receiver, result, is_delivered(result), retry_in, duration)
        )

    async def _give_up(self, receiver: str, reason: str) -> None:
        self._emit(receiver, reason, None, 0.0)
        await self._keep_letter(reason)

    def _stored(self, wait: float) -> StoredCallback:
        now = self.services.utc_now()
        return StoredCallback(self.callback, self.invocation.call_id, self.invocation.label, now, now + wait)

    async def _store(self, wait: float) -> bool:
        """Store the callback, to be sent again after *wait* seconds; return whether the broker has confirmed it."""
        sequence, stored_at = self.lease.delivery.id
        call_id, function = self.invocation.call_id, self.invocation.label
        try:
            await self.services.queue.store_callback(self._stored(wait), f"{sequence}.{stored_at}.{self.attempt}")
        except BrokerUnavailableError as error:
            self.services.emit(CallbackNotStored(call_id, function, str(error)))
            return False
        self.services.emit(CallbackStored(call_id, function))
        return True

    async def _keep_letter(self, reason: str, *, last: bool = True) -> bool:
        """Store a dead letter that holds the callback; return whether that succeeded. *last*: the callback ends here.

        Its headers are about the message whose result it is.
        """
        if not self.services.config.callback_durable:
            return False
        call_id, function = self.invocation.call_id, self.invocation.label
        message, payload = self.lease.delivery, encode_callback(self._stored(0.0))
        held = Delivery(message.id, message.token, message.num_delivered, message.received_at, message.subject, payload)
        letter = DeadLetter(held, reason, self.attempt, call_id, function, None, kind=CALLBACK_KIND)
        if await store_dead_letter(self.services, letter):
            return True
        if last:
            self.services.emit(CallbackDiscarded(call_id, function, origin_of(self.callback.url)))
        return False
