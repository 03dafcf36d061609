"""Retries of the stored callbacks, which any worker sends: one task for each that is sent now.

They arrive as a flow of their own, by credit that ends while as many are sent as may be. The decisions are made in
:mod:`worker.policy.callback_schedule`. A callback that is postponed has no task, so a receiver that is away costs next
to nothing. A worker's death costs no callback: the broker delivers it again after the ack wait.
"""

from __future__ import annotations

import trio

from .callbacks import Tried, note_result, post_once, refusal_reason
from .dead_letters import store_dead_letter
from .events import CallbackPosted, WorkCrashed
from .heartbeat import Lease
from .model import (
    CALLBACKS,
    Abandon,
    Ack,
    DeadLetter,
    Delivery,
    MessageId,
    Nak,
    StoredBody,
    StoredCallback,
    Term,
    Verdict,
)
from .policy.callback_schedule import MAX_BYTES, PLACES, Expire, Postpone
from .policy.durations import format_duration
from .policy.report import is_delivered, is_retriable, origin_of
from .policy.stored_callback import CALLBACK_KIND, decode_callback
from .ports import BodyLostError, Consumer
from .services import Services

CREDIT = 32
"""Stored callbacks that are requested at once: enough to postpone thousands a second."""


class CallbackRetries:
    """The stored callbacks that this worker has received."""

    def __init__(self, services: Services, nursery: trio.Nursery) -> None:
        self._services, self._nursery = services, nursery
        self._consumer: Consumer | None = None
        """None before the start, and from the drain on."""
        self._requested = 0
        self._held: dict[MessageId, Lease] = {}
        self._bytes = 0

    def start(self, consumer: Consumer) -> None:
        """Request stored callbacks from now on, where callbacks are stored."""
        if self._services.config.callback_durable:
            self._consumer = consumer
            self._request()

    def stop(self) -> None:
        """Request no more; what still arrives is given back."""
        self._consumer = None

    def receive(self, delivery: Delivery) -> None:
        """Send a stored callback, postpone it, or give it up."""
        services, now = self._services, trio.current_time()
        before = services.leases.terms.lost_at(delivery.received_at)
        self._requested -= 1
        if (held := self._held.get(delivery.id)) and not held.lost:
            services.leases.replace_delivery(delivery)
        elif now < before:  # afterwards, another worker may have it
            if self._consumer is None:
                services.queue.settle(delivery, Nak(), before=before)
            else:
                self._decide(delivery, before, now)
        self._request()

    def _request(self) -> None:
        free = len(self._held) < 2 * PLACES and self._bytes < MAX_BYTES
        if self._consumer and free and self._requested <= CREDIT // 2:
            self._consumer.add_credit(CREDIT - self._requested, CALLBACKS)
            self._requested = CREDIT

    def _decide(self, delivery: Delivery, before: float, now: float) -> None:
        services = self._services
        stored = decode_callback(delivery.payload)
        if isinstance(stored, str):
            self._begin(delivery, None, stored)
            return
        receiver, clock = origin_of(stored.callback.url), services.utc_now()
        action = services.schedule.decide(
            receiver,
            deliveries=delivery.num_delivered,
            age=clock - delivery.id[1] / 1e9,
            due_in=stored.not_before - clock,
            now=now,
            draw=services.rng(),
        )
        match action:
            case Postpone(delay):
                services.queue.settle(delivery, Nak(delay), before=before)
            case Expire():
                age = format_duration(services.config.callback_max_age)
                self._begin(delivery, stored, f"the receiver took it in none of its tries within {age}")
            case _:
                self._begin(delivery, stored, "")

    def _begin(self, delivery: Delivery, stored: StoredCallback | None, reason: str) -> None:
        lease = self._services.leases.add(delivery)
        self._held[delivery.id] = lease
        self._bytes += len(delivery.payload)
        self._nursery.start_soon(self._handle, lease, stored, reason)

    async def _handle(self, lease: Lease, stored: StoredCallback | None, reason: str) -> None:
        """Send a callback, or give it up for *reason*, and settle its message."""
        services: Services = self._services
        verdict: Verdict = Nak()
        with trio.CancelScope() as scope:
            services.drain.add(scope)
            lease.guard(scope)
            try:
                if stored and not reason:
                    verdict = await self._send(lease, stored)
                else:
                    verdict = await self._give_up(lease, stored, reason)
            except Exception as error:  # noqa: BLE001 -- the net of one callback; Cancelled is no Exception
                services.emit(WorkCrashed(lease.delivery, error))
                verdict = Nak(services.config.callback_retry.max_wait)
        services.drain.jobs.discard(scope)
        self._settle(lease, verdict, _body_of(stored))
        self._request()

    async def _send(self, lease: Lease, stored: StoredCallback) -> Verdict:
        services, receiver = self._services, origin_of(stored.callback.url)
        try:
            tried = await post_once(services, stored.callback, lease.delivery)
        except BodyLostError as error:
            return await self._give_up(lease, stored, str(error))
        finally:
            services.schedule.end(receiver)
        note_result(services, receiver, tried)
        return await self._conclude(lease, stored, receiver, tried)

    async def _conclude(self, lease: Lease, stored: StoredCallback, receiver: str, tried: Tried) -> Verdict:
        services, result = self._services, tried.result
        wait = None
        if is_retriable(result):
            age = services.utc_now() - lease.delivery.id[1] / 1e9
            deliveries = lease.delivery.num_delivered
            wait = services.schedule.wait_after(deliveries, age=age, asked=tried.asked, draw=services.rng())
        services.emit(
            CallbackPosted(
                stored.call_id,
                stored.function,
                receiver,
                result,
                is_delivered(result),
                wait,
                tried.ended - tried.began,
                stored=True,
            )
        )
        if is_delivered(result):
            return Ack()
        if wait is not None:
            return Nak(wait)
        return await self._give_up(lease, stored, refusal_reason(result))

    async def _give_up(self, lease: Lease, stored: StoredCallback | None, reason: str) -> Verdict:
        """Store a dead letter; without it the callback stays, and is tried again later."""
        call_id, function = (stored.call_id, stored.function) if stored else (None, None)
        deliveries = lease.delivery.num_delivered
        body = _body_of(stored)
        letter = DeadLetter(lease.delivery, reason, deliveries, call_id, function, None, body, kind=CALLBACK_KIND)
        if await store_dead_letter(self._services, letter):
            return Term(reason)
        return Nak(self._services.config.callback_retry.max_wait)

    def _settle(self, lease: Lease, verdict: Verdict, body: StoredBody | None) -> None:
        services, delivery = self._services, lease.delivery
        before = services.leases.lost_at(lease)
        if self._held.get(delivery.id) is lease:
            del self._held[delivery.id]
        self._bytes -= len(delivery.payload)
        if (lease.lost or trio.current_time() >= before) and not isinstance(verdict, Ack):
            verdict = Abandon()  # another worker may have it
        if not lease.lost:
            services.leases.remove(lease)
        if not isinstance(verdict, Abandon):
            # A dead letter refers to the body, and after the loss of the lease another worker may still read it.
            kept = (
                isinstance(verdict, Nak) or lease.lost or (isinstance(verdict, Term) and services.config.dead_letters)
            )
            services.queue.settle(delivery, verdict, before=before, body=None if kept else body)


def _body_of(stored: StoredCallback | None) -> StoredBody | None:
    return stored.callback.stored_body if stored else None
