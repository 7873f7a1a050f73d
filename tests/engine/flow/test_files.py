"""Files and directories that tasks read and write."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muster.errors import DataError, TaskRefused
from muster.flow import (
    CANCEL_SUCCESSORS,
    COMMUTATIVE,
    INOUT,
    OUT,
    Directory,
    File,
    barrier,
    engine,
    task,
    wait_on,
)


@pytest.fixture(params=["inline", "threads", "ray"])
def flow(request: pytest.FixtureRequest) -> Iterator[Any]:
    on = request.getfixturevalue("ray_engine") if request.param == "ray" else None
    with engine(request.param, workers=2, on=on) as flow:
        yield flow


@task(target=File(OUT))
def write(target: str, text: str) -> None:
    Path(target).write_text(text)


@task(source=File())
def read(source: str) -> str:
    return Path(source).read_text()


@task(log=File(INOUT))
def append(log: str, text: str) -> None:
    with open(log, "a") as file:
        file.write(text)


@task(source=File(), target=File(OUT))
def shout(source: Path, target: Path) -> str:
    target.write_text(source.read_text().upper())
    return source.name


def test_files_carry_dependences_like_objects(flow: Any, tmp_path: Path) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    write(str(source), "a")
    before = read(str(source))
    for text in "bcd":
        append(str(source), text)
    name = shout(source, target)
    assert wait_on(before, name, read(str(target))) == ("a", "in.txt", "ABCD")
    barrier()
    assert (source.read_text(), target.read_text()) == ("abcd", "ABCD")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.txt"]


def test_a_file_of_the_users_is_read_as_it_was_when_the_task_was_called(flow: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("first")
    contents = [read(str(path))]
    for number in range(5):
        write(str(path), f"version {number}")
        contents.append(read(str(path)))
    assert wait_on(contents) == ["first", *(f"version {number}" for number in range(5))]
    assert path.read_text() == "version 4"


def test_changes_in_any_order_are_all_there(flow: Any, tmp_path: Path) -> None:
    @task(log=File(COMMUTATIVE))
    def note(log: str, number: int) -> None:
        with open(log, "a") as file:
            file.write(f"{number}\n")

    path = tmp_path / "log.txt"
    path.write_text("")
    for number in range(20):
        note(str(path), number)
    assert sorted(map(int, wait_on(read(str(path))).split())) == list(range(20))
    assert sorted(map(int, path.read_text().split())) == list(range(20))


def test_directories_are_whole_versions_too(flow: Any, tmp_path: Path) -> None:
    @task(folder=Directory(OUT))
    def make(folder: str, count: int) -> None:
        Path(folder).mkdir()
        for number in range(count):
            (Path(folder) / f"{number}.txt").write_text(str(number))

    @task(folder=Directory(INOUT))
    def drop(folder: Path, name: str) -> None:
        (folder / name).unlink()

    @task(folder=Directory())
    def names(folder: str) -> list[str]:
        return sorted(path.name for path in Path(folder).iterdir())

    folder = tmp_path / "made"
    make(str(folder), 3)
    before = names(str(folder))
    drop(folder, "1.txt")
    assert wait_on(before, names(str(folder))) == (["0.txt", "1.txt", "2.txt"], ["0.txt", "2.txt"])
    barrier()
    assert sorted(path.name for path in folder.iterdir()) == ["0.txt", "2.txt"]


def test_a_task_that_fails_leaves_the_file_as_it_was(flow: Any, tmp_path: Path) -> None:
    @task(log=File(INOUT), on_failure=CANCEL_SUCCESSORS)
    def spoil(log: str) -> None:
        Path(log).write_text("half of")
        raise RuntimeError("in the middle")

    @task(target=File(OUT), on_failure=CANCEL_SUCCESSORS)
    def forget(target: str) -> None:
        pass

    path = tmp_path / "log.txt"
    path.write_text("whole")
    spoil(str(path))
    failed = read(str(path))
    with pytest.raises(RuntimeError, match="in the middle"):
        wait_on(failed)
    assert path.read_text() == "whole"
    with pytest.raises(DataError, match="was to be written by its task, and was not"):
        wait_on(forget(str(tmp_path / "never.txt")))


class TestRefusals:
    def test_what_is_not_there_or_no_path_is_refused_at_once(self, tmp_path: Path) -> None:
        with engine("threads", workers=1) as flow:
            with pytest.raises(DataError, match=r"none\.txt"):
                read(str(tmp_path / "none.txt"))
            with pytest.raises(TaskRefused, match="should be its path, not int"):
                read(3)
            with pytest.raises(TaskRefused, match="is a directory, not a file"):
                read(str(tmp_path))
            assert not flow.graph.pending

    def test_a_file_within_a_directory_that_is_changed_is_refused(self, tmp_path: Path) -> None:
        @task(folder=Directory(INOUT))
        def fill(folder: str) -> None:
            (Path(folder) / "new.txt").write_text("new")

        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "a.txt").write_text("a")
        with engine("threads", workers=1):
            fill(str(tmp_path / "d"))
            with pytest.raises(TaskRefused, match="lie within each other"):
                read(str(tmp_path / "d" / "a.txt"))

    def test_one_file_passed_twice_and_changed_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("a")
        with engine("threads", workers=1), pytest.raises(TaskRefused, match="twice"):
            shout(tmp_path / "a", tmp_path / "a")


def test_files_of_a_flow_that_was_killed_are_made_again_where_they_must(tmp_path: Path) -> None:
    ran: list[str] = []
    gate = threading.Event()

    @task(log=File(INOUT))
    def step(log: str, number: int) -> None:
        ran.append(f"step {number}")
        if number == 3 and not gate.is_set():
            raise KeyboardInterrupt
        with open(log, "a") as file:
            file.write(f"{number}\n")

    @task(source=File())
    def count(source: str) -> int:
        ran.append("count")
        return len(Path(source).read_text().splitlines())

    path = tmp_path / "log.txt"
    path.write_text("begin\n")

    def run() -> int:
        with engine("inline", run=tmp_path / "run"):
            for number in range(5):
                step(str(path), number)
            return int(wait_on(count(str(path))))

    with pytest.raises(KeyboardInterrupt):
        run()
    assert path.read_text() == "begin\n0\n1\n2\n"
    gate.set()
    assert run() == 6
    assert path.read_text() == "begin\n0\n1\n2\n3\n4\n"
    assert ran == ["step 0", "step 1", "step 2", "step 3", "step 3", "step 4", "count"]
    ran.clear()
    assert run() == 6
    assert not ran
    path.write_text("another beginning\n")
    assert run() == 6
    assert len(ran) == 6
