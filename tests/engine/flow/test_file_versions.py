"""Versions of files: the user's path holds a whole version at any moment, and a second start begins where the first did."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import random
import subprocess
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from engine.pool import conftest as disks
from muster.engine.flow import file_trees
from muster.engine.flow.file_versions import FileVersion, FileVersions
from muster.errors import BlobDamaged, CannotStore, DataError

small_disk = disks.small_disk


@pytest.fixture
def versions(tmp_path: Path) -> FileVersions:
    with FileVersions(tmp_path / "run" / "files") as opened:
        yield opened


def kept(versions: FileVersions, content: bytes | dict[str, bytes], name: str = "data") -> FileVersion:
    scratch = versions.scratch(name=name)
    if isinstance(content, bytes):
        scratch.write_bytes(content)
    else:
        folder(scratch, content)
    return versions.keep(scratch)


def folder(path: Path, content: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, text in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(text)
    return path


def read(path: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(path)): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()
    }


def age(*paths: Path) -> None:
    """Waits until the clock of the file system has moved on, so that a change would show."""
    newest = max(path.stat().st_ctime_ns for path in paths)
    while time.time_ns() - newest < 150_000_000:
        time.sleep(0.01)


def reads_of(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []
    real = file_trees.file_digest
    monkeypatch.setattr(file_trees, "file_digest", lambda file: read.append(file) or real(file))
    return read


# ---- adopting ----------------------------------------------------------------------------------------------------------


def test_a_file_is_its_bytes(versions: FileVersions, tmp_path: Path) -> None:
    path = tmp_path / "mesh.dat"
    path.write_bytes(b"mesh" * 1000)
    version = versions.adopt(path)
    assert version == FileVersion(hashlib.blake2b(b"mesh" * 1000, digest_size=20).hexdigest(), "file", 4000)
    assert versions.path(version) == path  # not copied
    (tmp_path / "other.dat").write_bytes(b"mesh" * 1000)
    assert versions.adopt(tmp_path / "other.dat") == version
    (tmp_path / "link").symlink_to("mesh.dat")
    assert versions.adopt(tmp_path / "link") == version
    assert versions.adopt(os.path.relpath(path)) == version


def test_a_folder_is_the_names_and_bytes_in_it(versions: FileVersions, tmp_path: Path) -> None:
    one = folder(tmp_path / "one", {"a": b"1", "sub/b": b"22", "sub/c": b"1"})
    same = folder(tmp_path / "same", {"sub/c": b"1", "sub/b": b"22", "a": b"1"})
    os.utime(same / "a", (0, 0))
    version = versions.adopt(one)
    assert (version.kind, version.size) == ("directory", 4)
    assert versions.adopt(same) == version
    different = [
        {"a": b"1", "sub/b": b"22"},
        {"a": b"1", "sub/b": b"22", "sub/d": b"1"},
        {"a": b"122", "sub/b": b"", "sub/c": b"1"},
    ]
    found = {version.digest}
    for number, content in enumerate(different):
        found.add(versions.adopt(folder(tmp_path / f"d{number}", content)).digest)
    (same / "sub" / "empty").mkdir()
    found.add(versions.adopt(same).digest)
    (one / "sub" / "l").symlink_to("b")
    found.add(versions.adopt(one).digest)
    (one / "sub" / "l").unlink()
    (one / "sub" / "l").symlink_to("c")
    found.add(versions.adopt(one).digest)
    assert len(found) == 7


def test_an_unchanged_file_is_not_read_again_and_a_changed_one_is(
    versions: FileVersions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reads_of(monkeypatch)
    path = tmp_path / "big"
    path.write_bytes(b"x" * 1000)
    age(path)
    first = versions.adopt(path)
    assert versions.adopt(path) == first
    assert len(read) == 1
    with FileVersions(tmp_path / "run" / "files") as again:  # nor in the next start
        assert again.adopt(path) == first
    assert len(read) == 1
    before = path.stat()
    path.write_bytes(b"y" * 1000)  # as many bytes, and
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # somebody sets the clock back
    assert versions.adopt(path) != first
    assert len(read) == 2


def test_of_a_folder_only_what_changed_is_read_again(
    versions: FileVersions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reads_of(monkeypatch)
    place = folder(tmp_path / "in", {name: name.encode() for name in "abcdef"})
    age(*place.iterdir())
    versions.adopt(place)
    assert len(read) == 6
    (place / "c").write_bytes(b"new")
    versions.adopt(place)
    assert read[6:] == [place / "c"]


def test_changes_within_a_tick_of_the_clock_are_seen(versions: FileVersions, tmp_path: Path) -> None:
    """The same size, the same inode, and most likely the same times."""
    path = tmp_path / "quick"
    for number in range(200):
        content = f"{number:04}".encode()
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(content)
        assert versions.adopt(path).digest == hashlib.blake2b(content, digest_size=20).hexdigest()


def test_what_cannot_be_read_is_refused(versions: FileVersions, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.dat is not there"):
        versions.adopt(tmp_path / "missing.dat")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is neither a file nor a folder"):
        versions.adopt(tmp_path / "pipe")
    place = folder(tmp_path / "in", {"a": b""})
    os.mkfifo(place / "pipe")
    with pytest.raises(DataError, match="in/pipe is neither"):
        versions.adopt(place)


def test_a_file_that_changed_since_is_not_given_out_as_the_version(
    versions: FileVersions, tmp_path: Path
) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"old")
    version = versions.adopt(path)
    path.write_bytes(b"new")
    with pytest.raises(BlobDamaged, match=f"has changed in {path} since"):
        versions.path(version)
    with pytest.raises(BlobDamaged, match="is not in"):
        versions.path(FileVersion("0" * 40, "file", 1))


# ---- scratch and keeping ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"state 0" * 1000, {"a": b"1", "sub/b": b"2"}])
def test_a_task_changes_a_copy_and_leaves_a_version_behind(
    versions: FileVersions, tmp_path: Path, content: bytes | dict[str, bytes]
) -> None:
    start = kept(versions, content)
    scratch = versions.scratch(start, name="state.nc")
    assert scratch.name == "state.nc"
    changed = scratch if scratch.is_file() else scratch / "sub" / "b"
    with changed.open("ab") as file:
        file.write(b" and more")
    after = versions.keep(scratch)
    assert not scratch.parent.exists()
    assert after != start
    for version in (start, after):
        versions.check(version)
        place = versions.path(version)
        assert place.is_relative_to(tmp_path / "run")
        for file in [place] if place.is_file() else [each for each in place.rglob("*") if each.is_file()]:
            assert file.stat().st_mode & 0o222 == 0
    assert versions.path(start).is_dir() == (start.kind == "directory")
    assert kept(versions, content) == start  # the same content is there once


def test_programs_stay_programs_and_links_stay_links(versions: FileVersions, tmp_path: Path) -> None:
    scratch = versions.scratch()
    folder(scratch, {"run.sh": b"#!/bin/sh\necho ran\n"})
    (scratch / "run.sh").chmod(0o755)
    (scratch / "latest").symlink_to("run.sh")
    version = versions.keep(scratch)
    versions.publish(version, tmp_path / "out", order=0)
    assert subprocess.run([tmp_path / "out" / "latest"], capture_output=True, check=True).stdout == b"ran\n"
    assert (tmp_path / "out" / "run.sh").stat().st_mode & 0o777 == 0o755 & ~umask()
    assert os.readlink(tmp_path / "out" / "latest") == "run.sh"


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_what_a_task_did_not_write_is_told(versions: FileVersions) -> None:
    scratch = versions.scratch(name="out.csv")
    with pytest.raises(DataError, match=r"out\.csv was to be written by its task, and was not"):
        versions.keep(scratch)
    scratch.write_bytes(b"")
    assert versions.keep(scratch).size == 0
    left = versions.scratch()
    left.write_bytes(b"of a task that was killed")
    versions.clear_scratch()
    assert not left.parent.exists()


@pytest.mark.parametrize("content", [b"x" * 100, {"a": b"1" * 100}])
def test_a_damaged_version_is_found_and_set_aside(
    versions: FileVersions, tmp_path: Path, content: bytes | dict[str, bytes]
) -> None:
    version = kept(versions, content)
    place = versions.path(version)
    file = place if place.is_file() else place / "a"
    file.chmod(0o644)
    with file.open("r+b") as opened:
        opened.write(b"!")
    with pytest.raises(BlobDamaged, match="is damaged"):
        versions.check(version)
    with pytest.raises(BlobDamaged, match="is not in"):
        versions.check(version)
    assert len(list((tmp_path / "run" / "files" / "damaged").iterdir())) == 1
    assert kept(versions, content) == version
    versions.check(version)
    versions.remove([version, version])
    with pytest.raises(BlobDamaged):
        versions.path(version)


# ---- publishing ---------------------------------------------------------------------------------------------------------


def test_a_published_file_is_the_users_own(versions: FileVersions, tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    version = kept(versions, b"result")
    assert versions.publish(version, path, order=1)
    assert path.read_bytes() == b"result"
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    path.write_bytes(b"scribbled")  # in place; the version has its own bytes
    versions.check(version)
    assert sorted(os.listdir(tmp_path)) == ["out.txt", "run"]


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_an_older_version_never_takes_the_place_of_a_newer_one(
    versions: FileVersions, tmp_path: Path, order: tuple[int, ...]
) -> None:
    made = {number: kept(versions, f"version {number}".encode()) for number in order}
    newest = 0
    for number in order:
        assert versions.publish(made[number], tmp_path / "out", order=number) == (number > newest)
        newest = max(newest, number)
        assert (tmp_path / "out").read_text() == f"version {newest}"


def test_a_link_leads_where_it_led(versions: FileVersions, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"0")
    (tmp_path / "link").symlink_to("real")
    versions.adopt(tmp_path / "link")
    versions.publish(kept(versions, b"1"), tmp_path / "link", order=1)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"1"


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_folder_takes_the_place_of_another_as_a_whole(
    versions: FileVersions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanged: bool
) -> None:
    if not exchanged:
        monkeypatch.setattr(file_trees, "_exchange", lambda one, other: False)
    path = folder(tmp_path / "state", {"a": b"0", "b": b"0"})
    start = versions.adopt(path)
    for number in (1, 2):
        version = kept(versions, {"a": str(number).encode(), f"only {number}": b""})
        assert versions.publish(version, path, order=number)
        assert read(path) == {"a": str(number).encode(), f"only {number}": b""}
    assert read(versions.path(start)) == {"a": b"0", "b": b"0"}  # others may still have to read it
    versions.check(start)
    assert sorted(os.listdir(tmp_path)) == ["run", "state"]


def test_what_the_user_wrote_meanwhile_is_not_overwritten(versions: FileVersions, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"0")
    versions.adopt(path)
    versions.publish(kept(versions, b"1"), path, order=1)
    path.write_bytes(b"mine")
    with pytest.raises(
        DataError, match="state was changed while the flow worked on it, and is not overwritten"
    ):
        versions.publish(kept(versions, b"2"), path, order=2)
    assert path.read_bytes() == b"mine"
    foreign = folder(tmp_path / "photos", {"a": b"precious"})
    with pytest.raises(DataError, match="photos is a folder that the flow has not made"):
        versions.publish(kept(versions, b"2"), foreign, order=2)
    assert read(foreign) == {"a": b"precious"}
    (tmp_path / "empty").mkdir()
    assert versions.publish(kept(versions, {"x": b"1"}), tmp_path / "empty", order=1)


def test_a_second_start_begins_from_what_the_first_began_from(tmp_path: Path) -> None:
    """The program of both starts: adopt the state, advance it three times, publish each time."""
    path, run = tmp_path / "state", tmp_path / "run"
    path.write_bytes(b"0")
    for stops_after in (1, 2, 3, 3):
        with FileVersions(run) as versions:
            version = versions.adopt(path)
            assert version.digest == hashlib.blake2b(b"0", digest_size=20).hexdigest()
            for number in range(stops_after):
                scratch = versions.scratch(version)
                scratch.write_bytes(scratch.read_bytes() + str(number + 1).encode())
                version = versions.keep(scratch)
                versions.publish(version, path, order=number)
        assert path.read_bytes() == b"0123"[: stops_after + 1]
    path.write_bytes(b"begin anew")
    with FileVersions(run) as versions:
        version = versions.adopt(path)
        assert version.size == len(b"begin anew")
        versions.publish(kept(versions, b"9"), path, order=0)
    with FileVersions(run) as versions:
        assert versions.adopt(path) == version
        versions.remove([version])  # what a file began from stays
        assert versions.adopt(path) == version


def publish_for_ever(kind: str, run: Path, path: Path, told: Connection) -> None:
    with FileVersions(run) as versions:
        version = versions.adopt(path)
        versions.clear_scratch()
        told.send(version.digest)
        for number in itertools.count(1):
            scratch = versions.scratch(version, name=path.name)
            for file in [scratch] if kind == "file" else sorted(scratch.iterdir()):
                file.write_bytes(f"{number:08}".encode() * 10_000)
            version = versions.keep(scratch)
            versions.publish(version, path, order=number)
            told.send(number)


@pytest.mark.kill
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_kill_at_any_moment_leaves_a_whole_version_at_the_path(tmp_path: Path, kind: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path, run, rng = home / "state", tmp_path / "run", random.Random(kind)
    start = b"%08d" % 0 * 10_000
    if kind == "file":
        path.write_bytes(start)
    else:
        folder(path, {"a": start, "b": start, "c": start})
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pytest", "muster.engine.flow.file_versions"])
    began, seen = set(), set()
    for number in range(10):
        heard, told = processes.Pipe(duplex=False)
        process = processes.Process(target=publish_for_ever, args=(kind, run, path, told))
        process.start()
        told.close()
        began.add(heard.recv())
        for _ in range(number % 4):
            heard.recv()
        time.sleep(rng.uniform(0.0, 0.05))
        process.kill()
        process.join()
        parts = {path.read_bytes()} if kind == "file" else set(read(path).values())
        content = parts.pop()
        assert not parts  # all files of one version
        assert content == content[:8] * 10_000
        assert kind == "file" or sorted(read(path)) == ["a", "b", "c"]
        seen.add(int(content[:8]))
    assert len(began) == 1  # whatever had been published before
    assert len(seen) > 2
    with FileVersions(run) as versions:
        for place in (run / "versions").glob("??/*"):
            size = sum(file.stat().st_size for file in ([place] if place.is_file() else place.iterdir()))
            versions.check(FileVersion(place.parent.name + place.name, kind, size))  # type: ignore[arg-type]
        versions.publish(versions.adopt(path), path, order=0)  # clears away what kills have left
    assert os.listdir(home) == ["state"]


def test_a_kill_between_two_renames_is_mended_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where the system cannot exchange two names."""
    path = folder(tmp_path / "state", {"a": b"0"})
    monkeypatch.setattr(file_trees, "_exchange", lambda one, other: False)
    real, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        if calls and self.name.startswith(".state"):
            raise KeyboardInterrupt  # the process ends here
        if target.name.endswith("old"):
            calls.append(target)
        return real(self, target)

    with FileVersions(tmp_path / "run") as versions:
        start = versions.adopt(path)
        version = kept(versions, {"a": b"1"})
        monkeypatch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            versions.publish(version, path, order=1)
        monkeypatch.setattr(Path, "rename", real)
    assert not path.exists()
    with FileVersions(tmp_path / "run") as versions:
        assert versions.adopt(path) == start
        assert read(path) == {"a": b"0"}
        versions.publish(version, path, order=1)
    assert read(path) == {"a": b"1"}
    assert sorted(os.listdir(tmp_path)) == ["run", "state"]


def test_threads_publish_in_the_order_of_the_program(versions: FileVersions, tmp_path: Path) -> None:
    made = [kept(versions, f"{number:04}".encode() * 5000) for number in range(24)]
    shuffled = list(enumerate(made))
    random.Random(1).shuffle(shuffled)

    def work(mine: list[tuple[int, FileVersion]]) -> None:
        for number, version in mine:
            versions.publish(version, tmp_path / "out", order=number)
            content = (tmp_path / "out").read_bytes()
            assert content == content[:4] * 5000
            assert int(content[:4]) >= number

    threads = [threading.Thread(target=work, args=(shuffled[k::4],)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "out").read_bytes() == b"0023" * 5000


def test_a_full_disk_is_told_and_the_path_keeps_what_it_had(versions: FileVersions, small_disk: Path) -> None:
    path = small_disk / "state"
    path.write_bytes(b"old" * 100)
    versions.adopt(path)
    big = kept(versions, bytes(9_000_000))
    with pytest.raises(
        CannotStore, match=r"state cannot be stored in .*: No space left on device; make room"
    ):
        versions.publish(big, path, order=1)
    assert path.read_bytes() == b"old" * 100
    assert os.listdir(small_disk) == ["state"]
    with FileVersions(small_disk / "run") as cramped:
        (small_disk / "large").write_bytes(bytes(4_500_000))
        large = cramped.adopt(small_disk / "large")
        with pytest.raises(CannotStore, match="scratch space for data cannot be stored"):
            cramped.scratch(large)
        assert list((small_disk / "run" / "scratch").iterdir()) == []


def test_versions_cross_file_systems(versions: FileVersions, small_disk: Path) -> None:
    path = folder(small_disk / "state", {"a": b"0"})
    start = versions.adopt(path)
    assert versions.publish(kept(versions, {"a": b"1"}), path, order=1)
    assert read(path) == {"a": b"1"}
    assert read(versions.path(start)) == {"a": b"0"}
