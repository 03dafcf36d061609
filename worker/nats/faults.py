"""The faults of the stream and its consumers: each is reported when it appears, and once when all have ended.

An operator may change a consumer while workers run. One that has become unusable is not pulled from until it is usable
again: a consumer that leaves out the payloads, for example, would turn every message into an empty dead letter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from ..events import BrokerMisconfigured, FaultsEnded
from ..ports import Emit
from . import topology
from .pull import Pull
from .pull_consumer import PullConsumer
from .wire import ConsumerConfig, ConsumerInfo

_PAUSE = 12.0
"""Seconds above which a pause is an operator's: workers pause a consumer for 10 s at most, while they change it."""
_NAMED = 5
"""Faults of one kind that are named: each function has a consumer, and all may have the same fault."""


class Faults:
    """The present faults, by the part of the worker that has found them."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._found: dict[str, tuple[str, ...]] = {}
        self._paused: set[str] = set()
        """The consumers that an operator has paused."""

    @property
    def text(self) -> str:
        """All faults in one line; empty where there is none."""
        return ". ".join(_shorten([text for texts in self._found.values() for text in texts]))

    def set(self, finder: str, texts: Collection[str]) -> None:
        """Replace the faults that *finder* has found, and report the new ones."""
        before = self._found.pop(finder, ())
        if texts:
            self._found[finder] = tuple(texts)
            for text in _shorten([text for text in texts if text not in before]):
                self._emit(BrokerMisconfigured(text))
        elif before and not self._found:
            self._emit(FaultsEnded())

    def judge(
        self,
        finder: str,
        flows: PullConsumer,
        infos: Iterable[ConsumerInfo],
        wanted: Callable[[Pull, ConsumerInfo], ConsumerConfig | None],
    ) -> None:
        """Judge the consumers that are pulled from, as last observed: hold the flows of the unusable ones.

        *wanted* returns the configuration that a flow's consumer should have, or None for a flow of another stream.
        """
        found = {info.name: info for info in infos}
        texts = []
        for pull in flows.bound:
            if (info := found.get(pull.consumer)) is None or (config := wanted(pull, info)) is None:
                continue
            limits = info.config
            pull.keep_limits(limits.max_batch, limits.max_expires / 1e9, limits.max_waiting or 0)
            faults, _ = topology.consumer_faults(info.config, config)
            faults += self._pause_fault(info)
            if faults or pull.held:
                flows.hold(pull, bool(faults))
            if faults:
                texts.append(f"the consumer {info.name} cannot be used: {'; '.join(faults)}")
        self.set(finder, texts)

    def _pause_fault(self, info: ConsumerInfo) -> list[str]:
        if not info.paused or (info.pause_remaining < _PAUSE * 1e9 and info.name not in self._paused):
            self._paused.discard(info.name)
            return []
        self._paused.add(info.name)
        return [f"it is paused until {info.config.pause_until}; `nats consumer resume` ends that"]


def _shorten(texts: list[str]) -> list[str]:
    more = len(texts) - _NAMED
    return [*texts[:_NAMED], f"{more} more consumers or streams cannot be used"] if more > 0 else texts
