"""The cache holds exactly the decoded photographs, is keyed by content, and survives kills and races."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import time

import numpy as np
import pytest
from PIL import Image

from muster.apps.vision.cache_folder import cache_root
from muster.apps.vision.photo_cache import PhotoCache, content_key
from muster.apps.vision.photographs import find_photographs, read_photograph
from muster.apps.vision.resize import bicubic_downscale
from muster.errors import DataError


def paths_in(folder):
    return {path.relative_to(folder).as_posix(): path for path in find_photographs(folder)}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_it_holds_the_photographs_and_their_low_resolution(folder, tmp_path, scale):
    paths = paths_in(folder)
    cache = PhotoCache(paths, scale, tmp_path / "cache")
    assert [one.name for one in cache] == ["a.png", "b.png", "trip/c.png", "trip/d.png"]
    for one in cache:
        whole = read_photograph(paths[one.name])
        height, width = whole.shape[0] // scale * scale, whole.shape[1] // scale * scale
        assert np.array_equal(one.hr, whole[:height, :width])
        assert np.array_equal(one.lr, bicubic_downscale(one.hr, scale))


def test_pixels_are_mapped_and_the_files_are_plain_numpy(folder, tmp_path):
    cache = PhotoCache(paths_in(folder), 2, tmp_path)
    assert isinstance(cache[0].hr, np.memmap)
    assert not cache[0].hr.flags.writeable
    flat = np.load(cache.folder / "hr.npy")
    assert flat.dtype == np.uint8
    assert flat.size == sum(
        Image.open(path).size[0] * Image.open(path).size[1] * 3 for path in paths_in(folder).values()
    )


def test_a_second_use_decodes_nothing(folder, tmp_path):
    first = PhotoCache(paths_in(folder), 2, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    PhotoCache(paths_in(folder), 2, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before


def test_the_key_is_names_and_contents_and_not_the_place(folder, tmp_path, scene):
    key = content_key(paths_in(folder))
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert content_key(paths_in(moved)) == key
    Image.fromarray(scene(64, 72, seed=99)).save(moved / "a.png")
    changed = content_key(paths_in(moved))
    assert changed != key
    (moved / "a.png").rename(moved / "z.png")
    assert content_key(paths_in(moved)) not in (key, changed)


def test_a_loader_process_gets_the_files_and_not_the_pixels(folder, tmp_path):
    cache = PhotoCache(paths_in(folder), 2, tmp_path)
    content = pickle.dumps(cache)
    assert len(content) < 4000
    assert np.array_equal(pickle.loads(content)[3].lr, cache[3].lr)


def _build(folder, root):
    PhotoCache(paths_in(folder), 2, root)


def test_several_processes_may_build_at_once(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_build, args=(folder, tmp_path / "cache")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    names = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert names == ["hr.npy", "index.json", "lr-x2.npy"]
    assert len(PhotoCache(paths_in(folder), 2, tmp_path / "cache")) == 4


def test_a_kill_at_any_moment_leaves_nothing_half_done(folder, tmp_path):
    paths, root = paths_in(folder), tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    for number in range(8):
        process = context.Process(target=_build, args=(folder, root))
        process.start()
        time.sleep(0.004 * number)
        if process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    cache = PhotoCache(paths, 2, root)
    assert all(np.array_equal(one.hr, read_photograph(paths[one.name])) for one in cache)


def test_what_a_kill_left_is_removed_a_day_later(folder, tmp_path):
    old, young = tmp_path / ".draft-old", tmp_path / ".draft-young"
    old.mkdir()
    young.mkdir()
    os.utime(old, (0, 0))
    PhotoCache(paths_in(folder), 2, tmp_path)
    assert not old.exists()
    assert young.exists()


def test_a_damaged_cache_is_refused_with_its_folder(folder, tmp_path):
    cache = PhotoCache(paths_in(folder), 2, tmp_path)
    np.save(cache.folder / "hr.npy", np.zeros(5, np.uint8))
    with pytest.raises(DataError, match=f"{cache.folder}.*damaged; remove"):
        PhotoCache(paths_in(folder), 2, tmp_path)


def _build_with_small_files(folder, root, results):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        PhotoCache(paths_in(folder), 2, root)
    except DataError as error:
        results.put(str(error))


def test_a_disk_that_takes_no_more_is_refused_with_the_mend(folder, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=_build_with_small_files, args=(folder, tmp_path / "cache", results))
    process.start()
    process.join()
    assert "make room or set XDG_CACHE_HOME" in results.get()
    assert not list((tmp_path / "cache").iterdir())


def test_the_cache_follows_xdg_cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root("photographs") == tmp_path / "muster" / "photographs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root("photographs") == tmp_path / ".cache" / "muster" / "photographs"
