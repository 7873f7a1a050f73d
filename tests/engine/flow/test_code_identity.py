"""What a function's code is: the same until somebody edits what it does, and then another, with the part that was edited."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import math
import operator
import os
import subprocess
import sys
import sysconfig
import threading
import timeit
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muster.engine.flow import code_identity as identities
from muster.engine.flow import instructions
from muster.engine.flow.code_identity import CodeIdentity, code_identity, explain

TASKS = '''
import functools
import math
import numpy as np
import physics
from physics import limit

GRAVITY = 9.81
TABLE = {"order": 2, "weights": [0.5, 0.5]}
GRID = np.linspace(0, 1, 5)

class Solver:
    """Solves."""
    order = 2
    def __init__(self, scale=1.0):
        self.scale = scale
    def step(self, x):
        return _flux(x) * self.scale
    @property
    def name(self):
        return "solver"
    @staticmethod
    def half(x):
        return x / 2
    @functools.cached_property
    def cost(self):
        return self.order * 3

def _deep(x):
    return x + 1

def _flux(x):
    return _deep(x) * GRAVITY

def simulate(x, dt=0.1, *, steps=3):
    total = 0.0
    for _ in range(steps):
        total += _flux(x) * dt + GRID[0] + TABLE["order"]
    total += Solver(2.0).step(x)
    total += sum(limit(each) for each in [x, physics.speed(x)])
    return math.sin(total) + 7
'''
PHYSICS = """
C = 3.0

def limit(x):
    return min(x, C)

def speed(x):
    return _root(x)

def _root(x):
    return x ** 0.5

def unused(x):
    return x
"""


class Project:
    """Modules on the disk that can be edited and asked again, in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.texts = {"tasks": TASKS, "physics": PHYSICS}
        self.write()

    def write(self) -> None:
        for name, text in self.texts.items():
            (self.folder / f"{name}.py").write_text(text)

    def edited(self, old: str, new: str, module: str = "tasks") -> None:
        assert self.texts[module].count(old) == 1, old
        self.texts[module] = self.texts[module].replace(old, new)
        self.write()

    def ask(self, *, seed: int = 0, main: bool = False, function: str = "simulate") -> CodeIdentity:
        told = f"import json; from muster.engine.flow.code_identity import code_identity; found = code_identity({function})\n"
        told += "print(json.dumps([found.digest, dict(found.parts)]))\n"
        environment = os.environ | {
            "PYTHONHASHSEED": str(seed),
            "PYTHONPATH": os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if main:
            script = self.folder / "tasks.py"
            script.write_text(
                self.texts["tasks"] + '\nif __name__ == "__main__":\n    ' + told.replace("\n", "\n    ")
            )
            command = [sys.executable, str(script)]
        else:
            command = [sys.executable, "-c", f"from tasks import *\nimport tasks\n{told}"]
        import json

        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        self.write()
        assert result.returncode == 0, result.stderr
        digest, parts = json.loads(result.stdout)
        return CodeIdentity(digest, parts)

    @contextlib.contextmanager
    def module(self, name: str = "tasks") -> Any:
        """The module in this process, as it is now."""
        sys.path.insert(0, str(self.folder))
        for each in self.texts:
            sys.modules.pop(each, None)
        importlib.invalidate_caches()
        written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            yield importlib.import_module(name)
        finally:
            sys.dont_write_bytecode = written
            sys.path.remove(str(self.folder))
            for each in self.texts:
                sys.modules.pop(each, None)

    def here(self) -> CodeIdentity:
        with self.module() as tasks:
            return code_identity(tasks.simulate)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_the_parts_are_what_the_function_uses_and_no_more(project: Project) -> None:
    parts = project.here().parts
    assert set(parts) == {
        "tasks.simulate",
        "Python",
        "helper tasks._flux",
        "helper tasks._deep",
        "class tasks.Solver",
        "helper tasks.Solver.__init__",
        "helper tasks.Solver.step",
        "helper tasks.Solver.half",
        "helper tasks.Solver.cost",
        "property tasks.Solver.name",
        "helper tasks.Solver.name",
        "default scale of tasks.Solver.__init__",
        "helper physics.limit",
        "helper physics.speed",
        "helper physics._root",
        "global physics.C",
        "global tasks.GRAVITY",
        "global tasks.GRID",
        "global tasks.TABLE",
        "default dt of tasks.simulate",
        "default steps of tasks.simulate",
        "package numpy",
    } - {"package numpy"}  # GRID is an array by its content; the function does not name numpy itself
    assert parts["Python"] == f"{sys.version_info.major}.{sys.version_info.minor}"


EDITS = [
    ("return x + 1", "return x + 2", "tasks", ["helper tasks._deep changed"]),  # two calls down
    ("return x ** 0.5", "return x ** 0.25", "physics", ["helper physics._root changed"]),
    ("C = 3.0", "C = 3.5", "physics", ["global physics.C changed"]),
    ("GRAVITY = 9.81", "GRAVITY = 9.80665", "tasks", ["global tasks.GRAVITY changed"]),
    ("GRAVITY = 9.81", "GRAVITY = np.float64(9.81)", "tasks", ["global tasks.GRAVITY changed"]),
    ("dt=0.1", "dt=0.2", "tasks", ["default dt of tasks.simulate changed"]),
    ("steps=3", "steps=4", "tasks", ["default steps of tasks.simulate changed"]),
    ("scale=1.0", "scale=2.0", "tasks", ["default scale of tasks.Solver.__init__ changed"]),
    ("+ 7", "+ 8", "tasks", ["tasks.simulate changed"]),
    ("math.sin", "math.cos", "tasks", ["tasks.simulate changed"]),
    ("[0.5, 0.5]", "[0.5, 0.25]", "tasks", ["global tasks.TABLE changed"]),
    ("np.linspace(0, 1, 5)", "np.linspace(0, 2, 5)", "tasks", ["global tasks.GRID changed"]),
    ("    order = 2", "    order = 3", "tasks", ["class tasks.Solver changed"]),
    ("* self.scale", "/ self.scale", "tasks", ["helper tasks.Solver.step changed"]),
    ('"solver"', '"another"', "tasks", ["helper tasks.Solver.name changed"]),
    ("self.order * 3", "self.order * 4", "tasks", ["helper tasks.Solver.cost changed"]),
    ("x / 2", "x / 3", "tasks", ["helper tasks.Solver.half changed"]),
    ("limit(each)", "limit(each + 1)", "tasks", ["tasks.simulate changed"]),  # in a generator within
    (
        "return _root(x)",
        "return x",
        "physics",
        ["helper physics.speed changed", "helper physics._root is not used any more"],
    ),
    (
        "return min(x, C)",
        "return min(x, unused(C))",
        "physics",
        ["helper physics.limit changed", "helper physics.unused is used now"],
    ),
]


@pytest.mark.parametrize(("old", "new", "module", "words"), EDITS)
def test_an_edit_is_noticed_and_named(
    project: Project, old: str, new: str, module: str, words: list[str]
) -> None:
    before = project.here()
    project.edited(old, new, module)
    after = project.here()
    assert after.digest != before.digest
    assert explain(before.parts, after.parts) == words
    assert explain(before.parts, before.parts) == []
    project.texts = {"tasks": TASKS, "physics": PHYSICS}
    project.write()
    assert project.here() == before


@pytest.mark.parametrize(
    ("old", "new", "module"),
    [
        ("\nGRAVITY", "\n\n\n# about gravity\nGRAVITY", "tasks"),
        ("return x + 1", "# comment\n    return (\n        x\n        +\n        1  # one\n    )", "tasks"),
        ('    """Solves."""', '    """Solves something else, and says so\n    at length."""', "tasks"),
        ('    """Solves."""\n', "", "tasks"),
        ("    total = 0.0", '    """Now it has a docstring."""\n    total = 0.0', "tasks"),
        ("def unused(x):\n    return x", "def unused(x):\n    return x + 1", "physics"),
        ("GRAVITY = 9.81", "GRAVITY = 9.0 + 0.81", "tasks"),
        ("def _deep(x):", "def _deep(x: float) -> float:", "tasks"),
    ],
)
def test_what_changes_nothing_is_no_change(project: Project, old: str, new: str, module: str) -> None:
    before = project.here()
    project.edited(old, new, module)
    assert project.here() == before


def test_an_edit_between_two_starts_of_a_program_is_noticed(project: Project) -> None:
    first = project.ask(seed=1)
    assert (
        project.ask(seed=2, main=True) == first
    )  # another process, another order of sets; run as a script, not imported
    project.edited("return x + 1", "return x - 1")
    edited = project.ask()
    assert edited.digest != first.digest
    assert explain(first.parts, edited.parts) == ["helper tasks._deep changed"]


def test_formatting_makes_no_difference_to_any_function_of_the_standard_library() -> None:
    """Each module against itself, parsed and written anew: other lines, other brackets, no comments."""

    def functions(code: types.CodeType) -> list[types.CodeType]:
        inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
        return inner + [deeper for each in inner for deeper in functions(each)]

    count = 0
    for name in ("argparse", "heapq", "inspect"):
        text = Path(sysconfig.get_path("stdlib"), f"{name}.py").read_text()
        plain = functions(compile(text, "a", "exec"))
        formatted = functions(compile(ast.unparse(ast.parse(text)), "b", "exec"))
        for one, other in zip(plain, formatted, strict=True):
            assert (
                instructions.read_instructions(one).digest == instructions.read_instructions(other).digest
            ), (name, one.co_qualname)
        count += len(plain)
    assert count > 300


def run_text(text: str, **names: Any) -> dict[str, Any]:
    module = types.ModuleType(names.pop("__name__", "typed_at_a_prompt"))
    sys.modules[module.__name__] = module
    vars(module).update(names)
    exec(text, vars(module))
    return vars(module)


def digest_of(text: str, name: str = "f", **names: Any) -> str:
    return code_identity(run_text(text, **names)[name]).digest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(x): return x", "def f(y): return y"),  # may be called by name
        ("def f(x): return x", "def f(*x): return x"),
        ("def f(x): return x", "def f(x, /): return x"),
        ("def f(x): return x in {1, 2}", "def f(x): return x in {1, 3}"),
        ("def f(x): return x.a", "def f(x): return x.b"),
        ("def f(x): return 1", "def f(x): return 1.0"),
        ("def f(x): return 1", "def f(x): return True"),
        ("def f(x): return 0.0", "def f(x): return -0.0"),
        ("def f(x): yield x", "def f(x): return x"),
        ("async def f(x): return x", "def f(x): return x"),
        ("def f(x): return x < 1", "def f(x): return x <= 1"),
        ("def f(x): return x and 1 or 2", "def f(x): return x or 1 and 2"),
        ("def f(x): return x + (1 if x else 2)", "def f(x): return x + (1 if not x else 2)"),
        # The same instructions, but another range of the exception's handler.
        (
            "def f(x):\n try:\n  x.a()\n  x.b()\n except ValueError:\n  x.c()",
            "def f(x):\n try:\n  x.a()\n except ValueError:\n  x.c()\n else:\n  x.b()",
        ),
        ("def f(x):\n def g(): return 1\n return g", "def f(x):\n def g(): return 2\n return g"),
        ("f = lambda x: (lambda: x + 1)", "f = lambda x: (lambda: x + 2)"),
        (
            "def f():\n class A:\n  'doc'\n  a = 1\n return A",
            "def f():\n class A:\n  'doc'\n  a = 2\n return A",
        ),
        ("import math\nf = math.sin", "import math\nf = math.cos"),
        (
            "import functools\nf = functools.partial(max, 1)",
            "import functools\nf = functools.partial(max, 2)",
        ),
        ("def g(): return 1\ndef f(): return g()", "def g(): return 2\ndef f(): return g()"),
        ("T = [len]\ndef f(): return T", "T = [max]\ndef f(): return T"),
        ("S = {1, 2}\ndef f(): return S", "S = {1, 3}\ndef f(): return S"),
        (
            "def a(): return 1\ndef b(): return 2\nT = {'x': a, 'y': b}\ndef f(): return T",
            "def a(): return 1\ndef b(): return 2\nT = {'x': b, 'y': a}\ndef f(): return T",
        ),
        (
            "def g(): return 1\ndef h(): return 2\nT = {g, h}\ndef f(): return T",
            "def g(): return 1\ndef h(): return 3\nT = {g, h}\ndef f(): return T",
        ),
        (
            "def odd(n): return n and even(n - 1)\ndef even(n): return not n or odd(n - 1)\nf = odd",
            "def odd(n): return n and even(n - 1)\ndef even(n): return not n or odd(n - 2)\nf = odd",
        ),
        ("class A:\n def m(self): return 1\nf = A().m", "class A:\n def m(self): return 2\nf = A().m"),
        (
            "class A:\n def __call__(self): return self.x\nf = A(); f.x = 1",
            "class A:\n def __call__(self): return self.x\nf = A(); f.x = 2",
        ),
        (
            "class B:\n def m(self): return 1\nclass A(B): pass\ndef f(): return A().m()",
            "class B:\n def m(self): return 2\nclass A(B): pass\ndef f(): return A().m()",
        ),
        (
            "import enum\nclass E(enum.Enum):\n A = 1\ndef f(): return E.A",
            "import enum\nclass E(enum.Enum):\n A = 2\ndef f(): return E.A",
        ),
        (
            "from dataclasses import dataclass\n@dataclass\nclass D:\n a: int = 1\ndef f(): return D()",
            "from dataclasses import dataclass\n@dataclass\nclass D:\n a: int = 2\ndef f(): return D()",
        ),
        (
            "from dataclasses import *\n@dataclass\nclass D:\n a: int = field(default_factory=lambda: 1)\nf = D",
            "from dataclasses import *\n@dataclass\nclass D:\n a: int = field(default_factory=lambda: 2)\nf = D",
        ),
        ("class f:\n members = 1", "class f:\n members = 2"),
        ("class f:\n __slots__ = ('a',)", "class f:\n __slots__ = ('b',)"),
        ("class f:\n @property\n def a(self): return 1", "class f:\n @property\n def a(self): return 2"),
        ("class f:\n @classmethod\n def a(cls): return 1", "class f:\n @classmethod\n def a(cls): return 2"),
        ("class f:\n class g:\n  a = 1", "class f:\n class g:\n  a = 2"),
        (
            "import functools\n@functools.lru_cache\ndef f(x): return x + 1",
            "import functools\n@functools.lru_cache\ndef f(x): return x + 2",
        ),
        (
            "import functools\n@functools.singledispatch\ndef f(x): return 1\n@f.register\ndef _(x: int): return 2",
            "import functools\n@functools.singledispatch\ndef f(x): return 1\n@f.register\ndef _(x: int): return 3",
        ),
        (
            "import contextlib\n@contextlib.contextmanager\ndef c(): yield 1\ndef f(): return c()",
            "import contextlib\n@contextlib.contextmanager\ndef c(): yield 2\ndef f(): return c()",
        ),
        (
            "def twice(g):\n def h(x): return g(g(x))\n return h\n@twice\ndef f(x): return x + 1",
            "def twice(g):\n def h(x): return g(g(x))\n return h\n@twice\ndef f(x): return x + 2",
        ),
        (
            "def by(k):\n def wrap(g):\n  def h(x): return k * g(x)\n  return h\n return wrap\n@by(2)\ndef f(x): return x",
            "def by(k):\n def wrap(g):\n  def h(x): return k * g(x)\n  return h\n return wrap\n@by(3)\ndef f(x): return x",
        ),
        (
            "import numpy as np\ndef g(x): return x\nf = np.vectorize(g)",
            "import numpy as np\ndef g(x): return -x\nf = np.vectorize(g)",
        ),
    ],
)
def test_functions_that_do_different_things_differ(one: str, other: str) -> None:
    assert digest_of(one) == digest_of(one)
    assert digest_of(other) == digest_of(other)
    assert digest_of(one) != digest_of(other)


def test_a_swap_of_two_helpers_with_the_same_text_is_noticed() -> None:
    """Both helpers have the same instructions; only what their modules' global says differs."""
    slow = run_text("K = 1\ndef h(): return K", __name__="slow")["h"]
    fast = run_text("K = 2\ndef h(): return K", __name__="fast")["h"]
    text = "def f(): return a() - b()"
    assert digest_of(text, a=slow, b=fast) != digest_of(text, a=fast, b=slow)


def test_recursion_and_cycles_have_an_end() -> None:
    text = "def f(n): return f(n - 1) if n else TABLE\nTABLE = {'f': f}"
    assert digest_of(text) == digest_of(text)
    text = "class A:\n def other(self): return B()\nclass B(A):\n def other(self): return A()\ndef f(): return A().other()"
    assert digest_of(text) == digest_of(text)
    chain = "\n".join(f"def f{k}(): return f{k + 1}()" for k in range(600)) + "\ndef f600(): return 0"
    assert digest_of(chain, "f0") != digest_of(chain[:-1] + "1", "f0")


def test_packages_count_by_version(monkeypatch: pytest.MonkeyPatch) -> None:
    space = run_text("import numpy as np\nfrom numpy.linalg import norm\ndef f(x): return norm(np.sin(x))")
    before = code_identity(space["f"])
    assert dict(before.parts) | {"typed_at_a_prompt.f": ""} == {
        "typed_at_a_prompt.f": "",
        "package numpy": np.__version__,
        "Python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }
    identities._held.clear()
    real = identities.version
    monkeypatch.setattr(identities, "version", lambda name: "99.1" if name == "numpy" else real(name))
    after = code_identity(space["f"])
    assert after.digest != before.digest
    assert explain(before.parts, after.parts) == [f"package numpy changed from {np.__version__} to 99.1"]


def test_a_package_is_what_a_distribution_has_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside metadata, but not brought by it: a script in a folder into which packages were installed is one's own."""
    (tmp_path / "brought.py").write_text("def g(): return 1\n")
    (tmp_path / "scribbled.py").write_text("def g(): return 1\n")
    metadata = tmp_path / "brought-1.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "import brought, scribbled\ndef f(): return brought.g() + scribbled.g()"
    parts = code_identity(run_text(text)["f"]).parts
    assert set(parts) == {"typed_at_a_prompt.f", "Python", "package brought", "helper scribbled.g"}
    assert parts["package brought"] == "1.5"
    for name in ("brought", "scribbled"):
        sys.modules.pop(name)


def test_imports_within_a_function_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "ocean"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "kernels.py").write_text("def flux(x): return x\ndef other(x): return x\n")
    (package / "tides.py").write_text(
        "def near(x):\n    from .kernels import flux\n    return flux(x)\n"
        "def whole(x):\n    import ocean.kernels\n    return ocean.kernels.flux(x)\n"
        "def part(x):\n    from . import kernels as k\n    return k.flux(x)\n"
        "def never(x):\n    import not_installed_anywhere\n    return not_installed_anywhere.f(x)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def parts(name: str) -> set[str]:
        for each in [each for each in sys.modules if each.partition(".")[0] == "ocean"]:
            del sys.modules[each]
        return set(code_identity(getattr(importlib.import_module("ocean.tides"), name)).parts)

    for name in ("near", "whole", "part"):
        assert parts(name) == {f"ocean.tides.{name}", "Python", "helper ocean.kernels.flux"}
    assert parts("never") == {"ocean.tides.never", "Python"}


def test_compiled_functions_are_followed_to_their_python_code() -> None:
    numba = pytest.importorskip("numba")
    text = "def g(x): return x + {}\ng = numba.njit({})(g)\ndef f(x): return g(x)"
    plain = digest_of(text.format(1, ""), numba=numba)
    assert plain == digest_of(text.format(1, ""), numba=numba)
    assert plain != digest_of(text.format(2, ""), numba=numba)
    assert plain != digest_of(text.format(1, "fastmath=True"), numba=numba)


def test_values_without_content_count_as_their_type() -> None:
    text = "def f():\n with LOCK: return STATE['lock'], STATE['k']"
    one = digest_of(text, LOCK=threading.Lock(), STATE={"lock": threading.Lock(), "k": 1})
    assert one == digest_of(text, LOCK=threading.Lock(), STATE={"lock": threading.Lock(), "k": 1})
    assert one != digest_of(text, LOCK=threading.Lock(), STATE={"lock": threading.Lock(), "k": 2})
    assert one != digest_of(text, LOCK=threading.RLock(), STATE={"lock": threading.Lock(), "k": 1})


def test_a_task_is_its_function() -> None:
    """An object with ``__wrapped__``, as `functools.update_wrapper` leaves it: what `@task` makes is one."""

    class Marked:
        def __init__(self, function: Callable[..., Any]) -> None:
            functools.update_wrapper(self, function)

        def __call__(self) -> None: ...

    one, other = (run_text(f"def g(): return {k}")["g"] for k in (1, 2))
    text = "def f(): return g()"
    assert digest_of(text, g=Marked(one)) == digest_of(text, g=Marked(one))
    assert digest_of(text, g=Marked(one)) != digest_of(text, g=Marked(other))


def test_an_identity_is_kept_until_something_that_it_was_made_from_is_another(project: Project) -> None:
    with project.module() as tasks:
        first = code_identity(tasks.simulate)
        assert code_identity(tasks.simulate) is first
        tasks.GRAVITY = 10.0
        heavier = code_identity(tasks.simulate)
        assert explain(first.parts, heavier.parts) == ["global tasks.GRAVITY changed"]
        tasks.GRAVITY = 9.81
        assert code_identity(tasks.simulate) == first
        held = tasks.simulate
        project.edited("return x + 1", "return x + 5")
        importlib.reload(tasks)
        assert explain(first.parts, code_identity(tasks.simulate).parts) == ["helper tasks._deep changed"]
        # The function from before the reload calls the helper from after it, by the name in their module.
        assert code_identity(held) == code_identity(tasks.simulate)
        tasks._deep.__code__ = (lambda x: x + 1).__code__  # as IPython's autoreload does
        assert code_identity(held).digest == first.digest
        tasks.Solver.step = lambda self, x: 0
        assert code_identity(held).digest != first.digest
        tasks.simulate.__defaults__ = (0.7,)
        assert "default dt of tasks.simulate changed" in explain(
            first.parts, code_identity(tasks.simulate).parts
        )


def test_closures_are_asked_for_what_they_hold_now() -> None:
    def made() -> tuple[Callable[[], int], Callable[[int], None]]:
        count = 0

        def read() -> int:
            return count

        def write(value: int) -> None:
            nonlocal count
            count = value

        return read, write

    read, write = made()
    zero = code_identity(read).digest
    write(3)
    assert code_identity(read).digest != zero
    write(0)
    assert code_identity(read).digest == zero


def test_the_interpreter_may_specialise_what_it_runs() -> None:
    """From Python 3.11 on instructions are rewritten while they run; the identity is of what they were."""
    function = run_text("def f(x):\n total = 0\n for k in range(x): total += k * 1.5\n return total")["f"]
    before = instructions.read_instructions(function.__code__).digest
    for _ in range(100):
        function(100)
    instructions._texts.clear()
    assert instructions.read_instructions(function.__code__).digest == before


def test_asking_again_takes_under_two_microseconds_for_a_small_function() -> None:
    function = run_text(
        "import math\nK = 2.0\ndef h(x): return math.sin(x) * K\ndef f(x): return h(x) + h(-x)"
    )["f"]
    code_identity(function)
    spent_s = min(timeit.repeat(lambda: code_identity(function), number=2000, repeat=7)) / 2000
    bare_s = min(timeit.repeat(lambda: operator.index(1), number=2000, repeat=7)) / 2000
    assert spent_s < 2e-6 + 20 * bare_s  # the second term is what a slow machine adds


def test_functions_of_packages_and_python_have_names() -> None:
    assert code_identity(math.sin).digest != code_identity(math.cos).digest
    assert code_identity(np.sin).digest != code_identity(np.cos).digest
    assert "package numpy" in code_identity(np.linalg.norm).parts
