"""How late the event loop is: a delay is noted, and the longest one is forgotten after a while."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from paperdb_trio.loop.delay import EVERY, WINDOW, LoopDelay


async def test_what_holds_up_the_loop_is_noted_and_forgotten(
    mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    delay = LoopDelay()

    async def jump(seconds: float) -> None:
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked()

    nursery.start_soon(delay.run)
    for _ in range(5):
        await jump(EVERY)
    assert delay.longest < 1e-6
    await jump(EVERY + 0.75)  # as if a task had worked that long
    assert abs(delay.longest - 0.75) < 1e-6
    counts = {sample.labels.get("le"): sample.value for sample in delay.seconds.samples()}
    assert (counts["0.0001"], counts["0.5"], counts["1.0"], counts["+Inf"]) == (5, 5, 6, 6)

    async def pass_time(seconds: float) -> None:
        for _ in range(int(seconds / EVERY) + 1):
            await jump(EVERY)

    await pass_time(WINDOW)
    assert delay.longest > 0.7
    await pass_time(WINDOW)
    assert delay.longest < 1e-6
