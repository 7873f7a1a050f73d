"""Arrays and tables as sources: the rows that NumPy, zarr and pyarrow read; nothing damaged or unsafe."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from muster.errors import DataError
from muster.pillars.io.samples import StoredSamples
from muster.pillars.io.sources import Npy, Parquet, decode_image, open_source


@pytest.fixture(autouse=True)
def index_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# ---- NumPy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["float32", ">i2", "complex128", "bool", "U5", [("x", "i4"), ("y", "f8", (2,))]]
)
@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 2, 5)])
def test_rows_are_those_of_the_array(tmp_path: Path, dtype: object, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(np.dtype(dtype))  # type: ignore[arg-type]
    np.save(tmp_path / "x.npy", array)
    source = Npy(tmp_path / "x.npy")
    assert isinstance(source, StoredSamples)
    assert (len(source), source.sizes().sum()) == (7, array.nbytes)
    for index in range(7):
        assert source[index].dtype == array.dtype
        assert np.array_equal(source[index], array[index])
    assert np.array_equal(pickle.loads(pickle.dumps(source))[-1], array[-1])


def test_labels_go_with_the_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(3))
    row, label = Npy(tmp_path / "x.npy", labels=[5, 6, 7])[1]
    assert (row.tolist(), label, row.flags.writeable) == ([0, 1, 0], 6, True)
    with pytest.raises(DataError, match="has 3 samples, labels are of shape"):
        Npy(tmp_path / "x.npy", labels=[5, 6])


def test_arrays_that_have_no_rows_to_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([{}, 1], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects, a pickle"):
        Npy(path)
    np.save(path, np.float64(3))
    with pytest.raises(DataError, match="a single number"):
        Npy(path)
    np.save(path, np.asfortranarray(np.ones((3, 4))))
    with pytest.raises(DataError, match="column-major"):
        Npy(path)
    np.save(path, np.ones((3, 4)))
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"x", whole[:50], b"", b"\x93NUMPY\x09\x00" + whole[8:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.npy"):
            Npy(path)


# ---- Parquet ----------------------------------------------------------------------------------------------------------


def table_of(rows: int) -> pa.Table:
    generator = np.random.default_rng(rows)
    return pa.table(
        {
            "number": np.arange(rows),
            "real": generator.normal(size=rows).astype(np.float32),
            "text": [None if row % 5 == 0 else f"zeile {row} ä" for row in range(rows)],
            "vector": [generator.normal(size=row % 4) for row in range(rows)],
            "fixed": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(3 * rows, dtype=np.int16)), 3),
            "record": [{"a": row, "b": {"c": [row, None]}} for row in range(rows)],
            "bytes": [generator.bytes(row * 3) for row in range(rows)],
            "kind": pa.array(["x", "y"] * (rows // 2)).dictionary_encode(),
        }
    )


def same(found: object, expected: object) -> bool:
    return np.array_equal(found, np.asarray(expected)) if isinstance(found, np.ndarray) else found == expected


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_rows_are_those_that_pyarrow_reads(tmp_path: Path, compression: str) -> None:
    for number, rows in enumerate((50, 24)):
        pq.write_table(
            table_of(rows), tmp_path / f"{number}.parquet", row_group_size=16, compression=compression
        )
    expected = [
        row for number in range(2) for row in pq.read_table(tmp_path / f"{number}.parquet").to_pylist()
    ]
    source = Parquet(f"{tmp_path}/{{0..1}}.parquet")
    assert isinstance(source, StoredSamples)
    assert len(source) == len(source.sizes()) == 74
    order = np.random.default_rng(0).permutation(74)
    for index in order:
        found = source[index]
        assert found.keys() == expected[index].keys()
        assert all(same(found[name], expected[index][name]) for name in found)
    assert source.rows_per_request == 74 / 6
    assert pickle.loads(pickle.dumps(source))[73]["number"] == 23


def test_only_the_chosen_columns_are_read(tmp_path: Path) -> None:
    pq.write_table(table_of(40), tmp_path / "x.parquet", row_group_size=10)
    source = Parquet(tmp_path / "x.parquet", columns=["text", "number"])
    assert source[11] == {"number": 11, "text": "zeile 11 ä"}
    # In the file's metadata: column 0 is `number`, column 2 is `text`, and `real` lies between them.
    group = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(1)
    begin = group.column(0).dictionary_page_offset or group.column(0).data_page_offset
    last = group.column(2)
    place = source.place(11)
    assert place.begin == begin
    assert place.end == (last.dictionary_page_offset or last.data_page_offset) + last.total_compressed_size
    with pytest.raises(DataError, match="has no column colour; it has number"):
        Parquet(tmp_path / "x.parquet", columns=["colour"])


def test_images_in_a_column_are_decoded_as_asked(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    files = []
    for each in pixels:
        file = io.BytesIO()
        Image.fromarray(each).save(file, "PNG")
        files.append(file.getvalue())
    pq.write_table(pa.table({"image": files, "label": range(4)}), tmp_path / "x.parquet")
    source = Parquet(tmp_path / "x.parquet", decode={"image": decode_image})
    assert all(np.array_equal(source[index]["image"], pixels[index]) for index in range(4))
    with pytest.raises(DataError, match="decode names column picture"):
        Parquet(tmp_path / "x.parquet", decode={"picture": decode_image})


@pytest.mark.parametrize("columns", [None, ["number", "real", "fixed"], ["text"], ["record", "vector"]])
def test_sizes_are_those_of_what_is_read(tmp_path: Path, columns: list[str] | None) -> None:
    for number, rows in enumerate((50, 24)):
        pq.write_table(table_of(rows), tmp_path / f"{number}.parquet", row_group_size=16)
    source = Parquet(f"{tmp_path}/*.parquet", columns=columns, index_folder=tmp_path / "index")
    assert source.sizes().tolist() == [len(source.read(index)) for index in range(74)]
    kept = {path.name for path in (tmp_path / "index").glob("*.index")}
    # Numbers alone need no index; of other columns there is one for each file, for whoever opens it next.
    assert len(kept) == (0 if columns == ["number", "real", "fixed"] else 2)
    again = Parquet(f"{tmp_path}/*.parquet", columns=columns, index_folder=tmp_path / "index")
    assert again.sizes().tolist() == source.sizes().tolist()


def test_numbers_with_nulls_are_not_taken_for_rows_of_one_length(tmp_path: Path) -> None:
    pq.write_table(pa.table({"number": [1, None, 3, None]}), tmp_path / "x.parquet")
    source = Parquet(tmp_path / "x.parquet", index_folder=tmp_path / "index")
    assert source.sizes().tolist() == [len(source.read(index)) for index in range(4)]
    assert [source[index]["number"] for index in range(4)] == [1, None, 3, None]


def test_few_row_groups_are_kept_when_memory_is_short(tmp_path: Path) -> None:
    pq.write_table(table_of(60), tmp_path / "x.parquet", row_group_size=10)
    source = Parquet(tmp_path / "x.parquet", cache_bytes=1)
    assert [source[index]["number"] for index in range(0, 60, 7)] == list(range(0, 60, 7))


def test_damage_to_a_row_group_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(table_of(60), path, row_group_size=20, write_page_checksum=True)
    whole = path.read_bytes()
    place = Parquet(path).place(25)
    content = bytearray(whole)
    content[(place.begin + place.end) // 2] ^= 0xFF
    path.write_bytes(content)
    source = Parquet(path)
    with pytest.raises(
        DataError, match=rf"row group 1 in .*x\.parquet, bytes {place.begin} to {place.end}, is corrupt"
    ):
        source.read(25)
    assert (source[3]["number"], source[59]["number"]) == (3, 59)
    for damaged in (whole[:-1], whole[:1000], b"", whole[:-8] + b"\xff\xff\xff\x7fPAR1", bytes(50) + b"PAR1"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.parquet is not a whole Parquet file"):
            Parquet(path)


def test_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": ["1"]}), tmp_path / "1.parquet")
    with pytest.raises(
        DataError, match=r"1\.parquet has other columns than .*0\.parquet: a string; there a int64"
    ):
        Parquet(f"{tmp_path}/*.parquet")


# ---- Zarr -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("chunks", [(1, 3, 4), (4, 3, 4), (3, 2, 1)])
def test_rows_of_a_zarr_array_are_those_that_zarr_reads(
    tmp_path: Path, version: int, chunks: tuple[int, ...]
) -> None:
    zarr = pytest.importorskip("zarr")
    array = np.random.default_rng(0).normal(size=(10, 3, 4)).astype(np.float32)
    stored = zarr.create_array(
        str(tmp_path / "x.zarr"), shape=array.shape, chunks=chunks, dtype=array.dtype, zarr_format=version
    )
    stored[:] = array
    source = open_source(tmp_path / "x.zarr", labels=range(10))
    assert isinstance(source, StoredSamples)
    assert source.sizes().tolist() == [48] * 10
    for index in (9, 0, 4):
        row, label = source[index]
        assert np.array_equal(row, array[index])
        assert label == index
    assert np.array_equal(pickle.loads(pickle.dumps(source))[7][0], array[7])


def test_shards_of_a_zarr_array_are_read_by_their_chunks(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    array = np.arange(24 * 5).reshape(24, 5)
    stored = zarr.create_array(
        str(tmp_path / "x.zarr"), shape=array.shape, chunks=(2, 5), shards=(8, 5), dtype=array.dtype
    )
    stored[:] = array
    source = open_source(tmp_path / "x.zarr")
    assert np.array_equal(np.stack([source[index] for index in range(24)]), array)


def test_a_damaged_chunk_or_array_is_refused(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "x.zarr"
    zarr.create_array(str(path), shape=(4, 1000), chunks=(1, 1000), dtype="f8")[:] = np.ones((4, 1000))
    (path / "c" / "2" / "0").write_bytes(b"\x28\xb5\x2f\xfd no zstd")
    source = open_source(path)
    with pytest.raises(DataError, match=r"chunk 2 of the first axis of .*x\.zarr is corrupt"):
        source[2]
    assert source[1].sum() == 1000
    (path / "zarr.json").write_text("{}")
    with pytest.raises(DataError, match=r"x\.zarr is no Zarr array"):
        open_source(path)
    with pytest.raises(DataError, match=r"gone\.zarr is no Zarr array"):
        open_source(tmp_path / "gone.zarr")
