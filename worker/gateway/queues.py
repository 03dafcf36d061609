"""The stream of a queue that a function's annotation names: found by the queue's subjects, whatever its name is."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from ..nats.jetstream import JetStream
from ..nats.topology import stream_faults, subjects
from ..policy.names import covers, subject_of
from ..ports import BrokerUnavailableError, Emit
from ..settings import Settings

FindStream = Callable[[JetStream, Settings, Emit], Awaitable[Settings]]
"""A function that returns the settings with the name of the queue's stream at the server."""


def settings_of(settings: Settings, queue: str) -> Settings:
    """Return the settings for another queue. Its stream commonly has the queue's name, but is found by its subjects."""
    return dataclasses.replace(settings, queue_name=queue, nats_stream=queue)


async def by_subject(jetstream: JetStream, settings: Settings, emit: Emit) -> Settings:  # noqa: ARG001 -- as as_named
    """Return the settings with the name of the stream that has the queue's subjects.

    An annotation may be wrong. So a stream that is no queue of workers is not written to: it may be another program's.

    Raises:
        BrokerUnavailableError: there is no such stream.
    """
    queue = settings.queue_name
    named = f"the queue {queue}, which the function's annotation com.openfaas.queue names"
    names = await jetstream.streams_of(subject_of(queue, 0, "function", "namespace"))
    found = await jetstream.find_stream(names[0]) if names else None
    if found is None:
        raise BrokerUnavailableError(
            f"no stream takes the subjects of {named}: start a worker with nats_stream={queue}, or correct the name"
        )
    settings = dataclasses.replace(settings, nats_stream=found.config.name)
    faults, _ = stream_faults(found.config, settings)
    faults += [
        f"its subjects {[*found.config.subjects]} leave out {each!r}"
        for each in subjects(settings)
        if not any(covers(pattern, each) for pattern in found.config.subjects)
    ]
    if faults:
        text = f"the stream {found.config.name} takes subjects of {named}, but is none of a worker's"
        raise BrokerUnavailableError(f"{text}: {'; '.join(faults)}")
    return settings
