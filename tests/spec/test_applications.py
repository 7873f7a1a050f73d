"""Applications are found by entry point; a broken one is an error that names its package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.errors import JobError
from muster.spec import application_names, job_schema, load_application, load_job, template

_GOOD = '''
from typing import ClassVar, Literal
from pydantic import Field
from muster.spec import Section, What
class Net(Section):
    width: int = Field(ge=1)
    """Features."""
class MyWhat(What):
    net: Net
    """The network."""
    folder: str
    """Where the data is."""
    kind: Literal["a", "b"] = "a"
class Good:
    What: ClassVar[type[What]] = MyWhat
    def __init__(self, what): self.what = what
    def check(self, samples_per_step): pass
'''


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two installed packages: one good, and one with an import that fails, a name that is no application, and a clash."""
    for package, source, entries in (
        ("goodpkg", _GOOD, "mine.good = goodpkg:Good\nclash = goodpkg:Good\n"),
        ("badpkg", "import no_such_module_at_all\n", "mine.bad = badpkg:Bad\nclash = badpkg:Bad\n"),
        ("oddpkg", "Odd = 3\n", "mine.odd = oddpkg:Odd\n"),
    ):
        (tmp_path / f"{package}.py").write_text(source)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[muster.applications]\n{entries}")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for package in ("goodpkg", "badpkg", "oddpkg"):
        sys.modules.pop(package, None)


@pytest.mark.usefixtures("packages")
class TestOfThirdParties:
    def test_they_are_listed_and_loaded_beside_our_own(self) -> None:
        assert {"vision.superres", "mine.good", "mine.bad"} <= set(application_names())
        assert load_application("mine.good").__name__ == "Good"

    def test_a_failing_import_names_the_package_and_keeps_the_cause(self) -> None:
        with pytest.raises(JobError, match=r"badpkg.*no_such_module_at_all") as caught:
            load_application("mine.bad")
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)

    def test_what_is_no_application_is_refused(self) -> None:
        with pytest.raises(JobError, match="oddpkg is no application"):
            load_application("mine.odd")

    def test_two_packages_with_one_name_are_refused(self) -> None:
        with pytest.raises(JobError, match="badpkg and goodpkg"):
            load_application("clash")

    def test_the_schema_leaves_the_broken_ones_out_with_a_warning(self) -> None:
        with pytest.warns(UserWarning, match="oddpkg"), pytest.warns(UserWarning, match="badpkg"):
            schema = job_schema()
        assert "mine.good" in schema["properties"]["what"]["properties"]["app"]["enum"]
        assert "mine.bad" not in schema["properties"]["what"]["properties"]["app"]["enum"]

    def test_its_keys_are_validated_by_its_own_model(self, tmp_path: Path) -> None:
        path = tmp_path / "x.yaml"
        path.write_text(
            "what:\n  app: mine.good\n  folder: here\n  net:\n    widht: 3\nhow: {steps: 1, batch: 2}\n"
        )
        with pytest.raises(JobError, match=r"x\.yaml:5: what\.net\.widht: unknown key; did you mean width\?"):
            load_job(path, environ={})
        path.write_text(
            "what:\n  app: mine.good\n  folder: here\n  net:\n    width: 0\nhow: {steps: 1, batch: 2}\n"
        )
        with pytest.raises(
            JobError, match=r"x\.yaml:5: what\.net\.width: found 0; expected a whole number of at least 1"
        ):
            load_job(path, environ={})

    def test_its_template_says_what_must_be_filled_in(self, tmp_path: Path) -> None:
        path = tmp_path / "x.yaml"
        path.write_text(template("good"))
        with pytest.raises(JobError, match=r"what\.(net\.width|folder): found nothing"):
            load_job(path, environ={})
        filled = load_job(path, ["what.folder=here", "what.net.width=3"], environ={})
        assert filled.what.net.width == 3  # type: ignore[attr-defined]


def test_loading_super_resolution_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from muster.spec import load_application as load; load('vision.superres')\n"
        "print([name for name in ('torch', 'ray') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
