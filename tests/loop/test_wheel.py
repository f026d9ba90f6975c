"""The timer wheel: each entry is checked when due, never early and at most a tick late. An entry that was
removed or planned anew in between is not checked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from paperdb_trio.loop.tick import TICK
from paperdb_trio.loop.wheel import Wheel


class Timer:
    """Records its checks; `again(now)` says when to check next."""

    def __init__(self, again: Callable[[float], float | None] = lambda now: None) -> None:
        self.due: int | None = None
        self.again = again
        self.looks: list[float] = []

    def check(self, now: float) -> float | None:
        self.looks.append(now)
        return self.again(now)


def test_ticks_keep_the_promised_second() -> None:
    """For expired tokens, and for changes by the command line. `tests/realtime/test_ends.py` tests it with real
    time, and slack for a busy machine."""
    assert 2 * TICK <= 0.75


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.25, 0.3, 1.0, 12.34])
async def test_due_entry_is_checked_within_a_tick(
    autojump_clock: MockClock, nursery: trio.Nursery, delay: float
) -> None:
    wheel = Wheel()
    nursery.start_soon(wheel.run)
    timer = Timer()
    when = trio.current_time() + delay
    wheel.add(timer, when)
    await trio.sleep(delay + 2 * TICK + 0.01)
    assert len(timer.looks) == 1
    assert when <= timer.looks[0] <= when + 2 * TICK
    assert timer.due is None


async def test_entry_without_a_time_is_checked_at_the_next_tick(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    await trio.sleep(100)
    wheel = Wheel()
    nursery.start_soon(wheel.run)
    timer = Timer()
    wheel.add(timer)
    await trio.sleep(TICK + 0.01)
    assert len(timer.looks) == 1


async def test_entry_that_asks_again_is_checked_again(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    wheel = Wheel()
    nursery.start_soon(wheel.run)
    timer = Timer(lambda now: now + 1)
    wheel.add(timer)
    await trio.sleep(10.4)
    assert 7 <= len(timer.looks) <= 10
    assert all(1 <= b - a <= 1 + 2 * TICK for a, b in zip(timer.looks, timer.looks[1:], strict=False))


async def test_overdue_entry_is_checked_once_per_tick(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """However late it is, it must not make the wheel spin."""
    wheel = Wheel()
    nursery.start_soon(wheel.run)
    timer = Timer(lambda now: now - 100)
    wheel.add(timer)
    await trio.sleep(TICK * 20 + 0.01)
    assert 10 <= len(timer.looks) <= 20


async def test_new_plan_replaces_the_old_one(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    wheel = Wheel()
    nursery.start_soon(wheel.run)
    timer = Timer()
    wheel.add(timer, trio.current_time() + 1)
    wheel.add(timer, trio.current_time() + 5)
    await trio.sleep(4)
    assert timer.looks == []
    wheel.add(timer, trio.current_time() + 0.5)
    await trio.sleep(10)
    assert len(timer.looks) == 1


async def test_removed_entry_is_not_checked(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    wheel = Wheel()
    nursery.start_soon(wheel.run)
    timer = Timer()
    wheel.remove(timer)  # not on the wheel: does nothing
    wheel.add(timer, trio.current_time() + 1)
    wheel.remove(timer)
    wheel.remove(timer)
    await trio.sleep(5)
    assert timer.looks == []
    assert timer.due is None


@pytest.mark.parametrize("what", ["remove", "delay"])
async def test_check_can_remove_another_entry_in_the_same_tick(
    autojump_clock: MockClock, nursery: trio.Nursery, what: str
) -> None:
    """As when one closed connection closes another. The entry that is checked first removes the other."""
    wheel = Wheel()
    timers: list[Timer] = []

    def undo_the_others(now: float) -> None:
        for other in timers:
            if not other.looks:
                if what == "remove":
                    wheel.remove(other)
                else:
                    wheel.add(other, now + 3)

    when = trio.current_time() + 1
    for _ in range(500):  # more than the wheel checks without a checkpoint
        timers.append(Timer(undo_the_others))
        wheel.add(timers[-1], when)
    nursery.start_soon(wheel.run)
    await trio.sleep(2)
    assert sum(len(timer.looks) for timer in timers) == 1
    await trio.sleep(3.5)
    assert sum(len(timer.looks) for timer in timers) == (1 if what == "remove" else 2)


async def test_changes_during_the_wheels_checkpoints_count(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """With many due in one tick, the wheel lets other tasks run in between. An entry that they remove or move
    is not checked in this tick."""
    wheel = Wheel()
    begun = trio.Event()
    timers = [Timer(lambda now: begun.set()) for _ in range(1000)]
    when = trio.current_time() + 1
    for timer in timers:
        wheel.add(timer, when)
    removed: list[Timer] = []
    moved: list[Timer] = []

    async def meddle() -> None:
        await begun.wait()
        waiting = [timer for timer in timers if not timer.looks]
        for index, timer in enumerate(waiting):
            (removed if index % 2 else moved).append(timer)
            if index % 2:
                wheel.remove(timer)
            else:
                wheel.add(timer, when + 2)

    nursery.start_soon(wheel.run)
    nursery.start_soon(meddle)
    await trio.sleep(10)
    assert len(removed) > 100
    assert all(timer.looks == [] for timer in removed)
    assert all(len(timer.looks) == 1 for timer in timers if timer not in removed)
    assert all(timer.looks[0] >= when + 2 for timer in moved)


async def test_wheel_stops_when_cancelled(autojump_clock: MockClock) -> None:
    wheel = Wheel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wheel.run)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
