"""No recall and no credit gets stuck, in whatever order connections are lost and restored."""

from __future__ import annotations

from math import inf

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock
from trio_asyncio import aio_as_trio

from tests.nats.test_outbox import OpenOutbox, open_outbox
from worker.model import CreditReturned, Notice
from worker.nats.pull import Pull

FLOWS = ("", "q.one", "quota/cap/one.fn")


class Fate:
    """A pull consumer under a connection that comes and goes, and the credit that each flow was given."""

    def __init__(self, opened: OpenOutbox) -> None:
        self.opened, self.flows, self.connection = opened, opened.flows, opened.connection
        self.credit = dict.fromkeys(FLOWS, 0)
        self.recalled: list[str] = []
        self.pulls: list[Pull] = []
        for flow in FLOWS:
            self.pulls.append(self.flows.open(flow))
            self.pulls[-1].bind(f"pull.{flow or 'shared'}")

    def note(self, notices: list[Notice]) -> None:
        """Take back the credit that is returned."""
        for notice in notices:
            assert isinstance(notice, CreditReturned)
            self.credit[notice.flow] -= notice.count
            self.recalled.remove(notice.flow)

    async def act(self, act: str, flow: str, *, pause: bool) -> None:
        match act:
            case "add":
                self.flows.add_credit(3, flow)
                self.credit[flow] += 3
            case "recall" if flow not in self.recalled:
                self.recalled.append(flow)
                self.flows.recall_credit(flow)
            case "hold" | "release":
                self.flows.hold(self.flows.open(flow), act == "hold")
            case "lose" if self.connection.up:
                self.connection.up = False
                self.connection.broken = OSError("broken")
                self.flows.connection_changed(False)
            case "restore" if not self.connection.up:
                await self.restore()
        if pause:
            await trio.testing.wait_all_tasks_blocked()
        self.note([each for each in self.flows.take_all() if isinstance(each, CreditReturned)])

    async def restore(self) -> None:
        """Connect as the queue does: settlements are sent again, and once the stream is found, requests are."""
        self.connection.up, self.connection.broken = True, None
        self.flows.connection_changed(True)
        self.opened.outbox.repeat_late(inf)
        await aio_as_trio(self.flows.request_again)()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "recall", "hold", "release", "lose", "restore"]),
            st.sampled_from(FLOWS),
            st.booleans(),
        ),
        max_size=25,
    )
)
def test_credit_survives_lost_connections(acts: list[tuple[str, str, bool]]) -> None:
    """Once there is a connection and no fault, all recalls have ended, and open requests are for all the credit."""

    async def main() -> None:
        async with open_outbox() as opened:
            await aio_as_trio(opened.flows.request_again)()
            fate = Fate(opened)
            for act, flow, pause in acts:
                await fate.act(act, flow, pause=pause)
            await fate.act("restore", "", pause=True)
            for flow in FLOWS:
                await fate.act("release", flow, pause=True)
            await trio.sleep(1.0)
            opened.outbox.wake()
            await fate.act("", "", pause=True)
            assert fate.recalled == []
            for pull in fate.pulls:
                assert pull.credit.outstanding + pull.credit.unrequested == fate.credit[pull.flow]
                assert pull.credit.outstanding or not fate.credit[pull.flow], "nothing is requested"

    trio.run(main, clock=MockClock(autojump_threshold=0.01))
