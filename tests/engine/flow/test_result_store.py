"""Results on the disk: what has a name is whole, arrays come back read-only, and damage is told so that tasks run again."""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.pool import conftest as disks
from muster.engine.flow.result_store import ResultStore
from muster.engine.flow.value_identity import value_digest
from muster.engine.pool import blobs
from muster.errors import BlobDamaged, CannotStore, MusterError, NotStorable, RefusedInput

small_disk = disks.small_disk


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "blobs")


def file_of(store: ResultStore, name: str) -> Path:
    return store._folder / name[:2] / name[2:]


ARRAYS = {
    "plain": np.arange(12.0).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "strided": np.arange(12.0).reshape(3, 4)[:, ::2],
    "backwards": np.arange(5)[::-1],
    "empty": np.zeros((0, 3), np.int8),
    "single": np.array(2.5),
    "dates": np.array(["2020-01-01", "2021-02-03"], "M8[D]"),
    "spans": np.arange(3).astype("m8[ms]"),
    "records": np.array([(1, 2.5), (3, 4.5)], "i4, f8"),
    "text": np.array(["a", "bcd"]),
    "complex": np.arange(3) * 1j,
    "flags": np.array([True, False]),
    "large": np.arange(300_000.0),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_bit_for_bit_and_read_only(store: ResultStore, name: str) -> None:
    array = ARRAYS[name]
    stored = store.put({"array": array, "again": [array]})
    found = store.get(stored.name)["array"]
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()
    assert value_digest(found) == value_digest(array)
    assert not found.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        found[...] = found
    assert stored.size == file_of(store, stored.name).stat().st_size


def test_what_was_one_array_twice_is_one_array_twice(store: ResultStore) -> None:
    array = np.arange(10)
    one, other = store.get(store.put((array, array)).name)
    assert one is other


def test_anything_that_pickles_comes_back(store: ResultStore) -> None:
    factor = 3
    values: list[Any] = [
        None, 1, "text", b"bytes" * 1000, {"a": (1, [2.5])}, {1, 2}, np.float32(1.5), collections.OrderedDict(a=1),
        np.array([1, "x", None], object),
    ]  # fmt: skip
    for value in values:
        found = store.get(store.put(value).name)
        assert value_digest(found) == value_digest(value)
    assert store.get(store.put(lambda x: factor * x).name)(5) == 15  # by cloudpickle


def test_the_same_content_has_one_file_and_its_name_is_the_digest_of_the_file(store: ResultStore) -> None:
    one, other = store.put(np.arange(100)), store.put(np.arange(100))
    assert one == other
    assert store.put(np.arange(101)).name != one.name
    content = file_of(store, one.name).read_bytes()
    assert blobs.digest(content) == one.name
    assert blobs.BlobStore(store._folder).get(one.name) == content  # as other parts of Muster read it
    assert one.name in store
    assert "0" * 40 not in store
    assert "../../etc/passwd" not in store


def test_large_arrays_are_not_copied_on_their_way(store: ResultStore) -> None:
    array = np.random.default_rng(0).random(1_000_000)
    tracemalloc.start()
    try:
        stored = store.put([array, "beside"])
        writing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        found, _ = store.get(stored.name)
        reading = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        store.put(array.reshape(1000, 1000)[:, ::2])
        strided = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert writing < 500_000  # of 8 MB
    assert reading < 500_000
    assert 4_000_000 < strided < 4_500_000  # one copy
    np.testing.assert_array_equal(found, array)
    assert found.ctypes.data % 64 == 0
    store.remove([stored.name])  # an array that is in use stays
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("place", [0, 20, 40, 60, 200, -1])
def test_a_flipped_bit_anywhere_is_noticed_and_the_file_set_aside(store: ResultStore, place: int) -> None:
    value = {"array": np.arange(100), "text": "x" * 100}
    stored = store.put(value)
    path = file_of(store, stored.name)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        BlobDamaged,
        match=f"{stored.name[:12]} is damaged, and was set aside in .*; its task has to run again",
    ):
        store.get(stored.name)
    assert stored.name not in store
    with pytest.raises(BlobDamaged, match="is missing"):
        store.get(stored.name)
    assert [each.read_bytes() for each in (store._folder / "damaged").iterdir()] == [bytes(content)]
    assert store.put(value) == stored  # made again
    assert store.get(stored.name)["text"] == "x" * 100


@pytest.mark.parametrize("left", [0, 10, 16, 100, 2_399_000])
def test_a_shortened_file_is_noticed(store: ResultStore, left: int) -> None:
    value = np.arange(300_000.0)
    stored = store.put(value)
    os.truncate(file_of(store, stored.name), left)
    assert store.put(value) == stored  # it is written again, since its size says that it is not whole
    np.testing.assert_array_equal(store.get(stored.name), value)
    os.truncate(file_of(store, stored.name), left)
    with pytest.raises(BlobDamaged):
        store.get(stored.name)


def test_a_check_reads_without_making_anything(store: ResultStore) -> None:
    stored = store.put([1, 2, 3])
    assert store.check(stored.name)
    path = file_of(store, stored.name)
    path.write_bytes(path.read_bytes()[::-1])
    assert not store.check(stored.name)
    assert not store.check(stored.name)
    assert not store.check("no name")
    with pytest.raises(BlobDamaged, match="has a name that is none"):
        store.get("../../etc/passwd")


def test_a_value_whose_class_has_gone_is_told(store: ResultStore, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from muster.engine.flow.result_store import ResultStore; import going\n"
        "print(ResultStore(Path(sys.argv[1])).put(going.Gone()).name)"
    )
    (tmp_path / "going.py").write_text("class Gone: pass\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", code, str(store._folder)]
    name = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    with pytest.raises(
        BlobDamaged, match=r"cannot be read back \(ModuleNotFoundError: No module named 'going'\)"
    ):
        store.get(name)
    assert name in store  # nothing is wrong with the file


def test_what_cannot_be_pickled_is_refused(store: ResultStore) -> None:
    for value in (threading.Lock(), (x for x in ()), {"deep": [sys.stdout]}):
        with pytest.raises(
            NotStorable, match=r"cannot be stored \(TypeError: cannot pickle .*; return what it is made from"
        ):
            store.put(value)
    assert issubclass(NotStorable, RefusedInput)
    assert not list(store._folder.glob("??/*"))
    error = BlobDamaged("ab" * 20, "is missing")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_only_what_is_wanted_is_kept(store: ResultStore) -> None:
    names = [store.put(k).name for k in range(5)]
    assert store.keep_only(names[:2]) == 3
    assert [name in store for name in names] == [True, True, False, False, False]


def test_several_threads_store_the_same_and_other_things_at_once(store: ResultStore) -> None:
    found: list[set[str]] = [set() for _ in range(4)]

    def work(mine: set[str]) -> None:
        for k in range(40):
            mine.add(store.put(np.full(500, k)).name)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == found[2] == found[3]
    assert sorted(int(store.get(name)[0]) for name in found[0]) == list(range(40))


def put_for_ever(folder: Path, told: Connection) -> None:
    store = ResultStore(folder)
    while True:
        told.send(store.put(np.frombuffer(os.urandom(3_000_000), np.uint8)).name)


@pytest.mark.kill
def test_a_kill_leaves_no_name_without_its_bytes(tmp_path: Path) -> None:
    rng, processes = random.Random(7), multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pytest", "muster.engine.flow.file_versions"])
    for _ in range(6):
        heard, told = processes.Pipe(duplex=False)
        process = processes.Process(target=put_for_ever, args=(tmp_path, told))
        process.start()
        told.close()
        named = [heard.recv()]
        time.sleep(rng.uniform(0.0, 0.05))
        process.kill()
        process.join()
        with contextlib.suppress(EOFError):
            while True:
                named.append(heard.recv())
        store = ResultStore(tmp_path)
        assert all(len(store.get(name)) == 3_000_000 for name in named)
        for path in tmp_path.glob("??/[!.]*"):
            assert blobs.digest(path.read_bytes()) == path.parent.name + path.name
        store.keep_only([])
        assert not list(tmp_path.glob("??/*"))  # what the killed write had left


def test_a_full_disk_is_told_and_leaves_nothing_half_written(small_disk: Path) -> None:
    store = ResultStore(small_disk / "blobs")
    kept = store.put(np.zeros(100_000))
    with pytest.raises(
        CannotStore,
        match=r"a result of 8,0.* bytes cannot be stored in .*: No space left on device; make room there",
    ):
        store.put(np.ones(1_000_000))
    assert issubclass(CannotStore, MusterError)
    assert [path.parent.name + path.name for path in small_disk.glob("blobs/??/*")] == [kept.name]
    assert len(store.get(kept.name)) == 100_000
    store.put("small things still have room")
