"""The private names of nats-py that we rely on are where they were."""

from __future__ import annotations

import inspect

from nats.aio.client import Client
from nats.aio.subscription import Subscription


def test_the_private_names_are_still_there() -> None:
    """A release of nats-py that moves one fails here, not at three in the morning."""
    client = Client()
    for name in ("_pending", "_pending_data_size", "_pings_outstanding", "_reading_task", "_transport"):
        assert hasattr(client, name), name
    assert inspect.iscoroutinefunction(Client._send_unsubscribe)
    assert inspect.iscoroutinefunction(Client.force_reconnect)
    assert "self._id" in inspect.getsource(Subscription.__init__)
    assert isinstance(Subscription.pending_msgs, property)


def test_pings_are_counted_until_they_are_answered() -> None:
    """``excuse_pings`` sets the count to nothing."""
    assert Client()._pings_outstanding == 0
    assert "self._pings_outstanding > self.options" in inspect.getsource(Client._ping_interval)


def test_what_waits_to_be_sent_is_kept_in_a_list() -> None:
    """``forget_unsent`` replaces it by an empty one."""
    client = Client()
    assert client._pending == []
    assert client._pending_data_size == 0
