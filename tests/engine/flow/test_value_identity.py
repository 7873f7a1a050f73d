"""Digests of values: equal where Python and NumPy say that two values are equal, different wherever a task could tell."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import fractions
import functools
import hashlib
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import zoneinfo
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.engine.flow.value_identity import value_digest
from muster.errors import RefusedInput, Undigestible

# Few different ones, so that equal values and values that are nearly equal come often.
SCALARS = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        -1,
        2**70,
        0.0,
        -0.0,
        1.0,
        2.5,
        1e300,
        1j,
        0j,
        complex(-0.0, 1),
        "",
        "a",
        "b",
        "ab",
        b"",
        b"a",
    ]
)
HASHABLE = SCALARS | st.tuples(SCALARS, SCALARS) | st.frozensets(SCALARS, max_size=3)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.tuples(inner, inner)
        | st.lists(SCALARS, min_size=15, max_size=18)
    ),
    max_leaves=6,
)


def told(value: Any) -> Any:
    """The value with every type and the sign of zeros written out, so that ``==`` tells all apart that a task could."""
    kind = type(value).__name__
    if isinstance(value, float):
        return kind, value.hex()
    if isinstance(value, complex):
        return kind, value.real.hex(), value.imag.hex()
    if isinstance(value, list | tuple):
        return kind, tuple(told(each) for each in value)
    if isinstance(value, dict):
        return kind, tuple((told(key), told(each)) for key, each in value.items())
    if isinstance(value, frozenset | set):
        return kind, frozenset(told(each) for each in value)
    return kind, value


@settings(max_examples=150, deadline=None)
@given(VALUES, VALUES)
def test_two_values_have_one_digest_if_and_only_if_nothing_tells_them_apart(one: Any, other: Any) -> None:
    assert (value_digest(one) == value_digest(other)) == (told(one) == told(other))


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_a_copy_through_pickle_has_the_digest_of_the_value(value: Any) -> None:
    assert value_digest(pickle.loads(pickle.dumps(value))) == value_digest(value)


@pytest.mark.parametrize(
    "values",
    [
        (1, True, 1.0, 1 + 0j, "1", b"1", np.int64(1), np.int32(1), np.float64(1), np.bool_(True), bytearray(b"1")),
        (0, False, 0.0, -0.0, None, "", b"", (), [], {}, set(), frozenset(), range(0), float("nan")),
        ([1, 2], [2, 1], (1, 2), [[1], 2], [1, [2]], [[1, 2]], {1: 2}, {2: 1}, {1, 2}, slice(1, 2), "1, 2"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2, "b": 1}),  # a task can see the order of a dict
        (["ab", "c"], ["a", "bc"], ["abc", ""], ["abc"]),
        (list(range(20)), [*range(19), 19.0], [*range(19), True], tuple(range(20)), list(map(str, range(20)))),
        ([0.0] * 20, [0.0] * 19 + [-0.0], [0.0] * 19 + [float("nan")], [0] * 20),
        (2**64, -(2**64), 2**20_000, 2**20_000 + 1, [2**20_000] * 20),
        (np.zeros(6), np.zeros(6, np.float32), np.zeros((2, 3)), np.zeros((3, 2)), np.zeros((6, 1)), [0.0] * 6),
        (np.zeros(0), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros(0, int), np.array(0.0), np.float64(0)),
        (np.array(["a"]), np.array(["a"], object), np.array(["a", "b"]), np.array([b"a"])),
        (np.array(["2020-01-01"], "M8[D]"), np.array(["2020-01-01"], "M8[s]"), np.array([18262])),
        (np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[0, 0]), np.array([1, 2])),
        (datetime.date(2020, 1, 2), datetime.datetime(2020, 1, 2), datetime.timedelta(1), datetime.time(1)),
        (
            datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
            datetime.datetime(2020, 1, 2, tzinfo=zoneinfo.ZoneInfo("UTC")),
            datetime.datetime(2020, 1, 2, fold=1),
        ),
        (pathlib.Path("a"), pathlib.Path("b"), pathlib.PurePosixPath("a"), "a"),
        (range(0, 3), range(0, 3, 2), range(1, 3), slice(0, 3), slice(None, 3)),
        (collections.OrderedDict(a=1), {"a": 1}, collections.Counter("a"), collections.defaultdict(int, a=1)),
        (collections.deque([1, 2]), collections.deque([1, 2], 2), collections.deque([2, 1]), [1, 2]),
        (int, float, np.float64, len, max, collections.OrderedDict),
        ((1).__add__, (2).__add__, [1].append, [2].append, [1].pop, np.arange(2).sum, np.arange(3).sum),
        (fractions.Fraction(1, 3), fractions.Fraction(2, 3), 1 / 3),
        (np.random.default_rng(1), np.random.default_rng(2)),
    ],
)  # fmt: skip
def test_values_that_a_task_could_tell_apart_differ(values: tuple[Any, ...]) -> None:
    digests = [value_digest(value) for value in values]
    assert len(set(digests)) == len(values)
    assert digests == [value_digest(value) for value in values]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (range(0, 3, 2), range(0, 4, 2)),  # as == has it
        (range(5, 5), range(0)),
        (float("nan"), float("inf") - float("inf")),
        ({"a", "b", "c", 1}, {1, "c", "b", "a"}),
        (np.asfortranarray(np.arange(12.0).reshape(3, 4)), np.arange(12.0).reshape(3, 4)),
        (np.arange(24).reshape(4, 6)[::2, ::-3], np.arange(24).reshape(4, 6)[::2, ::-3].copy()),
        (np.arange(10)[::-1], np.arange(9, -1, -1)),
        (np.array([1, "x", None], object), np.array([1, "x", None], object)),
        (functools.partial(max, 1, key=abs), functools.partial(max, 1, key=abs)),
    ],
)
def test_equal_content_in_another_form_is_the_same(one: Any, other: Any) -> None:
    assert value_digest(one) == value_digest(other)


def test_padding_and_rights_are_no_content() -> None:
    padded = np.zeros(3, np.dtype([("a", "i1"), ("b", "f8")], align=True))
    other = padded.copy()
    other.view(np.uint8)[1] = 77  # between the fields
    assert value_digest(padded) == value_digest(other)
    long, same = np.ones(2, np.longdouble), np.ones(2, np.longdouble)
    if long.itemsize == 16 and np.finfo(np.longdouble).nmant == 63:
        same.view(np.uint8)[12] = 99
    assert value_digest(long) == value_digest(same)
    assert value_digest(long) != value_digest(long + np.finfo(np.longdouble).eps)
    sealed = np.arange(5)
    sealed.flags.writeable = False
    assert value_digest(sealed) == value_digest(np.arange(5))


def test_a_memory_map_is_the_array_that_it_holds(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "array.npy", np.arange(100.0))
    assert value_digest(np.load(tmp_path / "array.npy", mmap_mode="r")) == value_digest(np.arange(100.0))


def test_every_item_of_a_large_array_counts_in_every_layout() -> None:
    rng = np.random.default_rng(0)
    array = rng.random((300, 500))
    digest = value_digest(array)
    assert digest == value_digest(np.asfortranarray(array)) == value_digest(array.T.copy().T)
    for _ in range(20):
        changed = array.copy()
        changed[rng.integers(300), rng.integers(500)] += 1e-9
        assert value_digest(changed) != digest
        assert value_digest(np.asfortranarray(changed)) == value_digest(changed)


def test_large_arrays_are_hashed_where_they_are() -> None:
    import tracemalloc

    array = np.zeros(4_000_000)
    tracemalloc.start()
    try:
        value_digest({"state": array})
        whole = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        value_digest(array.reshape(2000, 2000).T)
        pieces = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert whole < 100_000
    assert pieces < 4_000_000  # of 32 MB


def test_tensors_are_their_items() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6.0).reshape(2, 3)
    different = [
        tensor,
        tensor.reshape(3, 2),
        tensor.to(torch.bfloat16),
        tensor.clone().requires_grad_(),
        tensor + 1,
        tensor.to_sparse(),
        torch.nn.Parameter(tensor),
        tensor.numpy(),
        torch.tensor(1.0),
        torch.zeros(0),
    ]
    assert len({value_digest(each) for each in different}) == len(different)
    assert value_digest(tensor.t().contiguous().t()) == value_digest(tensor)
    assert value_digest(torch.conj(torch.tensor([1j]))) == value_digest(torch.tensor([complex(0.0, -1.0)]))
    with pytest.raises(Undigestible, match=r"value\[0\] has no content"):
        value_digest([torch.empty(3, device="meta")])
    torch.manual_seed(0)
    one = torch.nn.Linear(3, 2)
    torch.manual_seed(0)
    other = torch.nn.Linear(3, 2)
    assert value_digest(one) == value_digest(other)
    other.bias.data[0] += 1
    assert value_digest(one) != value_digest(other)


@dataclasses.dataclass
class Mesh:
    cells: int
    spacing_m: float = 0.5
    names: set[str] = dataclasses.field(default_factory=set)

    @functools.cached_property
    def length_m(self) -> float:
        return self.cells * self.spacing_m


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Slotted:
    __slots__ = ("one", "other")


class Names(set):
    pass


def test_objects_are_their_attributes_whatever_the_order_in_which_they_were_set() -> None:
    assert value_digest(Mesh(3)) == value_digest(Mesh(cells=3, spacing_m=0.5))
    assert (
        len(
            {value_digest(each) for each in (Mesh(3), Mesh(4), Mesh(3, 0.25), Mesh(3, names={"a"}), (3, 0.5))}
        )
        == 5
    )
    assert value_digest(Mesh(1, names={"a", "b"})) == value_digest(Mesh(1, names={"b", "a"}))
    asked, fresh = Mesh(3), Mesh(3)
    assert asked.length_m == 1.5
    assert value_digest(asked) == value_digest(fresh)
    asked.extra = 1  # type: ignore[attr-defined]
    assert value_digest(asked) != value_digest(fresh)
    assert value_digest(Point(1, 2)) == value_digest(Point(1, 2)) != value_digest(Point(2, 1))
    one, other = Slotted(), Slotted()
    one.one, one.other = 1, 2
    other.other, other.one = 2, 1
    assert value_digest(one) == value_digest(other)
    assert value_digest(Colour.RED) == value_digest(Colour(1)) != value_digest(Colour.BLUE)
    assert value_digest(Names("ab")) == value_digest(Names("ba")) != value_digest(set("ab"))


def test_functions_and_classes_are_their_code() -> None:
    def made(factor: float) -> Any:
        return lambda x: factor * x

    assert value_digest(made(2)) == value_digest(made(2)) != value_digest(made(3))
    assert value_digest({"f": made(2)}) == value_digest({"f": made(2)})
    assert value_digest(Mesh(1).__eq__) != value_digest(Mesh(2).__eq__)

    def kind(step: int) -> type:
        class Walker:
            def walk(self, x: int) -> int:
                return x + step

        return Walker

    assert value_digest(kind(1)()) == value_digest(kind(1)()) != value_digest(kind(2)())


def test_one_object_twice_is_two_equal_ones() -> None:
    part = [1, 2]
    assert value_digest([part, part]) == value_digest([[1, 2], [1, 2]])
    deep: list[Any] = []
    for _ in range(60):  # as a tree it has 2 to the 60th leaves
        deep = [deep, deep]
    assert value_digest(deep) == value_digest(pickle.loads(pickle.dumps(deep)))


class Node:
    def __init__(self, name: str) -> None:
        self.name, self.parent, self.children = name, None, []

    def add(self, name: str) -> Node:
        child = Node(name)
        child.parent = self
        self.children.append(child)
        return child


def test_what_refers_back_to_itself_has_an_end() -> None:
    def ring(*items: Any) -> list[Any]:
        made = list(items)
        made.append(made)
        return made

    assert value_digest(ring(1, 2)) == value_digest(ring(1, 2)) != value_digest(ring(1, 3))

    def tree(last: str) -> Node:
        root = Node("root")
        root.add("a").add("b")
        root.add(last)
        return root

    assert value_digest(tree("c")) == value_digest(tree("c")) != value_digest(tree("d"))
    assert value_digest(tree("c").children[0]) != value_digest(tree("c").children[1])
    crowd = [Node(str(k)) for k in range(200)]  # everybody knows everybody: paths without number
    for node in crowd:
        node.children = crowd
    assert value_digest(crowd[0]) != value_digest(crowd[1])
    loop = Node("x")
    loop.children = {loop}
    with pytest.raises(Undigestible, match=r"node\.children has no content .* refers back to itself"):
        value_digest(loop, "node")


def test_what_has_no_content_is_refused_by_its_place() -> None:
    with pytest.raises(Undigestible) as refused:
        value_digest({"grid": 1, "locks": [0, {"lock": threading.Lock()}]}, "params")
    assert refused.value.path == "params['locks'][1]['lock']"
    assert str(refused.value) == (
        "params['locks'][1]['lock'] has no content that could be compared: "
        "it is a _thread.lock (cannot pickle '_thread.lock' object); pass what it is made from"
    )
    assert isinstance(refused.value, RefusedInput)
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)
    mesh = Mesh(1)
    mesh.names = open(os.devnull)  # type: ignore[assignment]  # noqa: SIM115
    with mesh.names, pytest.raises(Undigestible, match=r"^mesh\.names has"):  # type: ignore[attr-defined]
        value_digest(mesh, "mesh")
    with pytest.raises(Undigestible, match=r"^value\[2\] has no content .*generator"):
        value_digest([0, 1, (x for x in ())])
    deep: Any = 0
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Undigestible, match="levels deep"):
        value_digest(deep)


def test_plain_arrays_are_told_by_their_bytes() -> None:
    """A digest that anybody can compute again: BLAKE2b over tagged parts."""

    def blake(content: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=20).digest()

    array = np.arange(5, dtype="<i4")
    header = b"s:" + bytes([len("<i4 (5,)")]) + b"<i4 (5,)"
    encoding = b"A/" + blake(header + blake(array.tobytes()))
    assert value_digest(array) == blake(encoding).hex()


IN_ANOTHER_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import datetime, enum, dataclasses, pathlib
import numpy as np
from muster.engine.flow.value_identity import value_digest

@dataclasses.dataclass
class Own:
    names: set
    table: dict

class Kind(enum.Flag):
    A = 1
    B = 2

def area(x): return x * 2
def volume(x): return x * 3

value = [
    {"alpha", "beta", "gamma", "delta", b"epsilon", 1, None, 2.5},
    frozenset({("a", 1), ("b", 2), frozenset("xyz")}),
    Own({"p", "q", "r"}, {"k": {"x", "y", "z"}}),
    Kind.A | Kind.B, Kind.A, area, {area, volume, Own}, pathlib.Path("a/b"), datetime.date(2020, 1, 1),
    np.arange(7).reshape(7, 1), ["text"] * 30, lambda word: word in {"a", "b", "c", "d"},
]
print(value_digest(value))
"""


def test_digests_are_the_same_in_every_process_and_under_every_hash_seed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "script.py").write_text(IN_ANOTHER_PROCESS)
    commands = [
        [sys.executable, str(tmp_path / "script.py"), ""],
        [sys.executable, "-c", "import script", str(tmp_path)],
    ]
    found = set()
    for seed, command in enumerate(commands):
        environment = os.environ | {
            "PYTHONHASHSEED": str(seed + 1),
            "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        }
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1
