"""The exchange: its thread behind DistributedDataParallel, what it does when something fails, and its state."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from muster.errors import MusterError, RefusedInput
from muster.gang import Engine, RankContext
from muster.pillars.comm.compress import Part
from muster.pillars.comm.exchange import Choice, Exchange
from muster.pillars.comm.exchange_state import reshard

LAYERS = 6


def network(**options: Any) -> tuple[torch.nn.Module, Any]:
    """A model with the same weights on all ranks, and its replica with a bucket for each layer or so."""
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(32, 32) for _ in range(LAYERS)])
    options = {"bucket_cap_mb": 0.004, "gradient_as_bucket_view": True} | options
    return model, DistributedDataParallel(model, **options)


def digest(model: torch.nn.Module) -> str:
    words = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    return hashlib.sha256(words.tobytes()).hexdigest()


def batch(rank: int, step: int) -> torch.Tensor:
    return torch.randn(8, 32, generator=torch.Generator().manual_seed(1000 * step + rank))


def mixed(index: int, parts: Sequence[Part]) -> Choice:
    """Every compressor with state, each on some bucket."""
    return [
        Choice("topk", {"density": 0.05}),
        Choice("oktopk", {"density": 0.05, "threshold_every": 7, "partition_every": 9}),
        Choice("powersgd", {"rank": 2}),
        Choice("int8"),
        Choice("topk", {"density": 0.1, "reduction": "streams", "momentum": 0.5, "warm_up_steps": 30}),
    ][index % 5]


def test_uncompressed_it_gives_the_bits_of_plain_data_parallel_training(local_engine: Engine) -> None:
    def run(context: RankContext) -> list[str]:
        found = []
        for hooked in (False, True):
            model, replica = network()
            if hooked:
                exchange = Exchange(model.named_parameters())
                replica.register_comm_hook(None, context.clock.hook(exchange.hook))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for step in range(5):
                context.clock.begin_step(step)
                optimizer.zero_grad()
                replica(batch(context.rank, step)).square().mean().backward()
                optimizer.step()
            ended = context.clock.end_step()
            found.append(digest(model))
        assert ended is not None
        assert len(ended.flights) == len(exchange.compressors) > 1
        assert all(flight.end > flight.enter for flight in ended.flights)  # the clock saw each bucket land
        exchange.close()
        return found

    (plain, ours), (_, other) = local_engine.run(run, ranks=2)
    assert plain == ours == other


def test_parameters_have_the_same_bits_on_all_ranks_at_every_step(local_engine: Engine) -> None:
    def run(context: RankContext) -> list[str]:
        model, replica = network()
        hashes = []
        with Exchange(model.named_parameters(), mixed) as exchange:
            replica.register_comm_hook(None, exchange.hook)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            for step in range(20):
                optimizer.zero_grad()
                replica(batch(context.rank, step)).square().mean().backward()
                optimizer.step()
                hashes.append(digest(model))
        return hashes

    one, two, three = local_engine.run(run, ranks=3)
    assert one == two == three
    assert len(set(one)) == 20


def train(context: RankContext, folder: Path, kill_at: int | None) -> str:
    """100 steps with a checkpoint at every 25th, by a loop such as a user writes it."""
    model, replica = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with Exchange(model.named_parameters(), mixed, seed=3) as exchange:
        replica.register_comm_hook(None, exchange.hook)
        with exchange.uncompressed():  # DistributedDataParallel rebuilds its buckets after the first pass
            for _ in range(2):
                replica(batch(0, 0)).square().mean().backward()
        step = 0
        saved = sorted(folder.glob(f"*-rank{context.rank}.pt"))
        if saved:
            state = torch.load(saved[-1])
            step = state["step"]
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            exchange.load_state_dict(state["exchange"])
        while step < 100:
            if step == kill_at and context.attempt == 0 and context.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            optimizer.zero_grad()
            replica(batch(context.rank, step)).square().mean().backward()
            optimizer.step()
            step += 1
            if step % 25 == 0:
                state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(
                    state | {"exchange": exchange.state_dict()}, folder / f"{step:03d}-rank{context.rank}.pt"
                )
                torch.distributed.barrier()
    return f"{context.attempt} {digest(model)}"


def test_a_killed_run_resumes_to_the_bits_of_the_undisturbed_one(
    local_engine: Engine, tmp_path: Path
) -> None:
    ends = []
    for name, kill_at in (("calm", None), ("killed", 63)):
        folder = tmp_path / name
        folder.mkdir()
        found = local_engine.run(
            lambda context, folder=folder, kill_at=kill_at: train(context, folder, kill_at),
            ranks=2,
            max_restarts=1,
        )
        ends.append([end.split() for end in found])
    calm, killed = ends
    assert [attempt for attempt, _ in calm + killed] == ["0", "0", "1", "1"]
    assert len({end for _, end in calm + killed}) == 1


def test_a_rank_that_dies_fails_the_others_backward_pass_by_name_and_at_once(tmp_path: Path) -> None:
    """The process is killed for real. A gang would end the survivor too, so the ranks are forked here."""

    def rank_main(rank: int, meeting: str, told: Any) -> None:
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
        model, replica = network()
        exchange = Exchange(model.named_parameters(), "topk")
        replica.register_comm_hook(None, exchange.hook)
        for step in range(1000):
            if rank == 1 and step == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            begin = time.monotonic()
            try:
                replica(batch(rank, step)).square().mean().backward()
            except RuntimeError as error:
                told.put((str(error), str(exchange.failure), time.monotonic() - begin))
                break
        try:
            replica(batch(rank, 0)).square().mean().backward()
        except (MusterError, RuntimeError) as error:
            told.put(str(error))
        exchange.close()
        told.close()
        told.join_thread()
        os._exit(0)

    fork = multiprocessing.get_context("fork")
    told = fork.Queue()
    ranks = [fork.Process(target=rank_main, args=(rank, f"{tmp_path}/meeting", told)) for rank in range(2)]
    for process in ranks:
        process.start()
    try:
        error, failure, took = told.get(timeout=300)
        again = told.get(timeout=300)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    assert "failed on rank 0" in error
    assert "exchange of gradients: bucket" in error
    assert "bucket" in failure
    assert took < 120  # Gloo's own timeout is half an hour
    assert again == failure


def test_an_exception_in_one_ranks_thread_fails_all_ranks_and_none_waits_for_the_timeout(
    local_engine: Engine,
) -> None:
    def run(context: RankContext) -> tuple[str, float, int]:
        from muster.pillars.comm.compress import Wire

        class Faulty(Wire):
            calls = 0

            def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
                self.calls += 1
                if self.rank == 1 and self.calls > 20:
                    raise ArithmeticError("no memory left for the pairs")
                return super().all_gather(tensor)

        model, replica = network()
        exchange = Exchange(model.named_parameters(), "topk", wire=Faulty)
        replica.register_comm_hook(None, context.clock.hook(exchange.hook))
        begin, said = time.monotonic(), ""
        for step in range(100):
            context.clock.begin_step(step)
            try:
                replica(batch(context.rank, step)).square().mean().backward()
            except RuntimeError as error:
                said = str(error)
                break
        exchange.close()
        alive = sum(thread.name == "muster-exchange" for thread in threading.enumerate())
        return said, time.monotonic() - begin, alive

    (zero, took, alive), (one, _, also_alive) = local_engine.run(run, ranks=2)
    assert "failed on rank 1: ArithmeticError: no memory left for the pairs" in one
    assert "failed on rank 0" in zero
    assert took < 120
    assert alive == also_alive == 0


def test_ranks_that_would_compress_a_bucket_differently_are_told_so(local_engine: Engine) -> None:
    def run(context: RankContext) -> str:
        model, replica = network()
        with Exchange(model.named_parameters(), "topk" if context.rank else "bf16") as exchange:
            replica.register_comm_hook(None, exchange.hook)
            with pytest.raises(RuntimeError) as caught:
                replica(batch(context.rank, 0)).square().mean().backward()
        return str(caught.value)

    assert all("ranks disagree about a bucket" in said for said in local_engine.run(run, ranks=2))


def test_a_closed_exchange_says_so(local_engine: Engine) -> None:
    def run(context: RankContext) -> str:
        model, replica = network()
        exchange = Exchange(model.named_parameters(), "bf16")
        replica.register_comm_hook(None, exchange.hook)
        exchange.close()
        exchange.close()
        with pytest.raises(MusterError) as caught:
            replica(batch(context.rank, 0)).square().mean().backward()
        return str(caught.value)

    assert all("is closed" in said for said in local_engine.run(run, ranks=2))


def test_residuals_survive_other_buckets_and_are_sent_by_a_compressor_that_keeps_none(
    local_engine: Engine,
) -> None:
    """What the first steps left unsent is in the sum of all gradients after the last, uncompressed one."""

    def run(context: RankContext) -> tuple[float, int, int]:
        applied: list[torch.Tensor] = []
        expected: list[torch.Tensor] = []

        def steps(replica: Any, model: torch.nn.Module, numbers: range) -> None:
            for step in numbers:
                model.zero_grad()
                replica(batch(context.rank, step)).square().mean().backward()
                applied.append(torch.cat([p.grad.reshape(-1).double() for p in model.parameters()]))
                local, _ = network()
                local(batch(context.rank, step)).square().mean().backward()
                mean = torch.cat([p.grad.reshape(-1).double() for p in local.parameters()])
                torch.distributed.all_reduce(mean)
                expected.append(mean / 2)

        model, replica = network()
        with Exchange(model.named_parameters(), Choice("topk", {"density": 0.02})) as exchange:
            replica.register_comm_hook(None, exchange.hook)
            steps(replica, model, range(4))
            many, state = len(exchange.compressors), exchange.state_dict()
        model, replica = network(bucket_cap_mb=25)
        with Exchange(model.named_parameters(), Choice("topk", {"density": 0.02})) as exchange:
            exchange.load_state_dict(state)
            again = exchange.state_dict()["parameters"]
            assert all(
                torch.equal(again[name]["residual"], kept["residual"])
                for name, kept in state["parameters"].items()
            )
            replica.register_comm_hook(None, exchange.hook)
            steps(replica, model, range(4, 8))
            few = len(exchange.compressors)
            exchange.rechoose("none")
            steps(replica, model, range(8, 9))
        return float((sum(applied) - sum(expected)).abs().max()), many, few

    for error, many, few in local_engine.run(run, ranks=2):
        assert error < 1e-6
        assert many > few


@pytest.mark.parametrize(("old", "new"), [(2, 3), (3, 2), (4, 1), (1, 4)])
def test_another_world_size_keeps_what_the_residuals_are_worth(old: int, new: int) -> None:
    generator = torch.Generator().manual_seed(0)
    states = [
        {
            "format": 1,
            "rank": rank,
            "world_size": old,
            "parameters": {
                "weight": {
                    "compressor": "powersgd",
                    "residual": torch.randn(10, generator=generator),
                    "shared_factor": torch.ones(2),
                },
            },
            "buckets": {"key": {"steps": torch.tensor(5)}},
        }
        for rank in range(old)
    ]
    resharded = [reshard(states, rank, new) for rank in range(new)]
    # An update applies the mean over ranks, so the mean is what must not change.
    before = sum(state["parameters"]["weight"]["residual"] for state in states) / old
    after = sum(state["parameters"]["weight"]["residual"] for state in resharded) / new
    torch.testing.assert_close(before, after)
    assert [(state["rank"], state["world_size"]) for state in resharded] == [(r, new) for r in range(new)]
    assert torch.equal(resharded[-1]["parameters"]["weight"]["shared_factor"], torch.ones(2))
    with pytest.raises(RefusedInput, match="give all, in order of rank"):
        reshard(states[1:], 0, new)


def test_a_state_of_something_else_is_refused_in_one_sentence(local_engine: Engine) -> None:
    def run(context: RankContext) -> list[str]:
        model, _ = network()
        said = []
        with Exchange(model.named_parameters(), "topk") as exchange:
            good = exchange.state_dict()
            for bad in (
                good | {"format": 99},
                good | {"world_size": 5},
                good | {"parameters": {"strange.weight": {"compressor": "topk"}}},
            ):
                with pytest.raises(RefusedInput) as caught:
                    exchange.load_state_dict(bad)
                said.append(str(caught.value))
        return said

    for format, world, name in local_engine.run(run, ranks=2):
        assert "format 99 is unknown" in format
        assert "of 5 and this is rank" in world
        assert "no parameter strange.weight" in name
