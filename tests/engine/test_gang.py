"""Gangs behave the same on forked processes and on Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

import pytest

from muster.errors import RankFailed
from muster.gang import Engine, RankContext


@pytest.fixture(params=["local", "ray"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue(f"{request.param}_engine")


def test_ranks_share_a_process_group_and_return_in_order(engine: Engine) -> None:
    def total(context: RankContext) -> tuple[int, int, float]:
        import torch
        import torch.distributed as dist

        value = torch.tensor([2.0**context.rank])
        dist.all_reduce(value)
        return context.rank, context.world_size, float(value)

    assert engine.run(total, ranks=3) == [(0, 3, 7.0), (1, 3, 7.0), (2, 3, 7.0)]


def test_one_rank_alone_is_a_gang_too(engine: Engine) -> None:
    assert engine.run(lambda context: (context.rank, context.world_size), ranks=1) == [(0, 1)]


def test_threads_are_the_cores_shared_out(engine: Engine) -> None:
    def threads(context: RankContext) -> int:
        import torch

        return torch.get_num_threads()

    cores = len(os.sched_getaffinity(0))
    assert engine.run(threads, ranks=2) == [max(1, cores // 2)] * 2
    assert engine.run(threads, ranks=2, threads=3) == [3, 3]


def test_the_error_shown_is_that_of_the_rank_that_raised(engine: Engine) -> None:
    def fail_on_one(context: RankContext) -> None:
        import torch
        import torch.distributed as dist

        if context.rank == 1:
            raise KeyError("the culprit")
        with context.clock.in_a_collective():
            dist.all_reduce(torch.ones(1))

    with pytest.raises(RankFailed, match=r"rank 1 raised KeyError: 'the culprit'") as failure:
        engine.run(fail_on_one, ranks=3)
    assert failure.value.rank == 1
    assert "fail_on_one" in failure.value.traceback


def test_a_killed_rank_is_named_with_its_signal_or_death(engine: Engine) -> None:
    def die(context: RankContext) -> None:
        import torch
        import torch.distributed as dist

        if context.rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        with context.clock.in_a_collective():
            dist.all_reduce(torch.ones(1))

    with pytest.raises(RankFailed, match="rank 2 died") as failure:
        engine.run(die, ranks=3)
    assert failure.value.rank == 2


def test_a_rank_without_heartbeat_counts_as_hung(engine: Engine) -> None:
    def hang(context: RankContext) -> None:
        for _ in range(100):
            if context.rank == 1:
                time.sleep(600)
            context.heartbeat()
            time.sleep(0.1)

    began = time.monotonic()
    with pytest.raises(RankFailed, match="rank 1 sent no heartbeat"):
        engine.run(hang, ranks=2, hang_timeout_s=4.0)
    assert time.monotonic() - began < 300  # on a busy machine, most of it for the start


def test_restarts_are_counted_and_end(engine: Engine, tmp_path: Any) -> None:
    def fail_twice(marker: str) -> Callable[[RankContext], int]:
        def function(context: RankContext) -> int:
            if context.rank == 0:
                with open(marker, "a") as file:
                    file.write("x")
            if context.attempt < 2:
                raise RuntimeError("not yet")
            return context.attempt

        return function

    marker = tmp_path / "starts"
    assert engine.run(fail_twice(str(marker)), ranks=2, max_restarts=2) == [2, 2]
    assert marker.read_text() == "xxx"
    with pytest.raises(RankFailed, match="after 1 restarts"):
        engine.run(fail_twice(str(tmp_path / "other")), ranks=2, max_restarts=1)


def test_an_unpicklable_result_is_an_error_and_not_a_hang(engine: Engine) -> None:
    def unpicklable(context: RankContext) -> Any:
        import threading

        return threading.Lock()

    with pytest.raises(RankFailed, match="cannot be sent back"):
        engine.run(unpicklable, ranks=2)


def test_ranks_see_the_users_home_and_not_the_engines(engine: Engine) -> None:
    import pwd

    homes = engine.run(lambda context: os.environ["HOME"], ranks=2)
    assert homes == [pwd.getpwuid(os.getuid()).pw_dir] * 2


def test_what_an_engine_needs_does_not_leak_into_its_process() -> None:
    """Else another program that this one starts takes the loopback, the private HOME and the token for its own."""
    script = """
        import os, sys
        from muster import gang
        def main():
            before = dict(os.environ)
            with gang.engine(sys.argv[1]) as engine:
                assert dict(os.environ) == before
                assert engine.run(lambda context: os.environ["GLOO_SOCKET_IFNAME"], ranks=1) == ["lo"]
                assert dict(os.environ) == before
            assert dict(os.environ) == before
        if __name__ == "__main__":
            main()
    """
    for kind in ("local", "embedded"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), kind], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_ranks_may_have_children_of_their_own(engine: Engine) -> None:
    """As a loader with worker processes needs."""

    def sum_by_child(context: RankContext) -> int:
        import multiprocessing

        with multiprocessing.get_context("forkserver").Pool(1) as pool:
            return int(pool.apply(sum, ([context.rank, 40],)))

    assert engine.run(sum_by_child, ranks=2) == [40, 41]
