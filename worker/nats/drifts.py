"""The comparison of the stream and its consumers, as observed, with the settings.

A fault stops this worker from pulling (:mod:`worker.nats.faults`). A drift is another value than that of the settings,
which works; it is reported once.
"""

from __future__ import annotations

from ..events import ConfigDrift, Event
from ..model import CALLBACKS, SHARED, Backlog
from ..policy.quota import is_token_flow
from ..ports import Emit
from ..settings import Settings
from . import topology
from .faults import Faults
from .layout import ConsumerSet, static, undelivered
from .pull import Pull
from .pull_consumer import PullConsumer
from .wire import ConsumerConfig, ConsumerInfo, StreamInfo

RETIRED_FLOW = "retired/"
"""The beginning of a retired consumer's flow. No subject of a queue has it: queues' names have no slash."""
_DELETE = "deleting it lets the workers create it again, which delivers all"


class Drifts:
    """The faults and drifts of one stream. *settings* have the stream's name at the server."""

    def __init__(self, settings: Settings, flows: PullConsumer, faults: Faults, emit: Emit) -> None:
        self._settings, self._flows, self._faults, self._emit = settings, flows, faults, emit
        self._reported: set[Event] = set()
        self._undelivered: tuple[Backlog | None, ConsumerSet] = None, ConsumerSet()
        """The last look for messages that no consumer delivers."""

    def report(self, event: Event) -> None:
        """Emit an event, a drift only once."""
        if event not in self._reported:
            self._emit(event)
        if isinstance(event, ConfigDrift):
            self._reported.add(event)

    def judge_stream(self, info: StreamInfo) -> None:
        """Set the stream's faults, and report its drifts."""
        faults, drifts = topology.stream_faults(info.config, self._settings)
        text = f"the stream {self._settings.nats_stream} cannot be used: {'; '.join(faults)}"
        self._faults.set("stream", [text] if faults else ())
        for drift in drifts:
            self.report(topology.drift(f"stream {self._settings.nats_stream}", drift))

    def judge_consumers(self, infos: list[ConsumerInfo], layout: str | None) -> None:
        """Set the faults of all consumers, and report the drifts of the shared one of the *layout* that is served."""
        self._faults.judge("consumers", self._flows, infos, self._wanted_config)
        shared = self._flows.find(SHARED)
        for info in infos:
            if shared and info.name == shared.consumer:
                wanted = topology.consumer_config(self._settings, layout or static(1), alone=False)
                for drift in topology.consumer_faults(info.config, wanted)[1]:
                    self.report(topology.drift(f"consumer {info.name} of stream {self._settings.nats_stream}", drift))

    def judge_shared(self, info: ConsumerInfo) -> None:
        """Set the faults of the shared consumer, which was just bound."""
        self._faults.judge("consumers", self._flows, [info], self._wanted_config)

    def look_for_undelivered(self, backlog: Backlog | None, consumers: ConsumerSet) -> None:
        """Report messages that no consumer delivers any more: a max_deliver that was set for a while leaves some.

        Only where nothing has changed since the last look, because two requests do not see the same moment.
        """
        before, seen = self._undelivered, (backlog, consumers)
        self._undelivered = seen
        if backlog is None or seen != before or backlog is before[0] or consumers.foreign or consumers.retired:
            return
        for name, messages in undelivered(consumers, backlog.by_subject).items():
            self.report(
                ConfigDrift(f"{messages} messages are stored that the consumer {name} does not deliver: {_DELETE}")
            )

    def _wanted_config(self, pull: Pull, info: ConsumerInfo) -> ConsumerConfig | None:
        if is_token_flow(pull.flow) or pull.flow == CALLBACKS:
            return None
        if pull.flow == SHARED or pull.flow.startswith(RETIRED_FLOW):
            return info.config  # its filter may be any
        return topology.flow_config(self._settings, pull.flow, info.name)
