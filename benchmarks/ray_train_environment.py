"""A virtual environment for the peer Ray Train, made on demand outside the checkout.

Ray Train needs packages that Muster does not. It gets the same torch and the same Ray as Muster has here, so that only the
trainer differs, in ``$XDG_CACHE_HOME/muster-benchmarks/ray-train``.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class RayTrainUnavailable(Exception):
    """The environment cannot be made; says why."""


def cache_home() -> Path:
    """Where this user's caches are."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def ray_train_python() -> Path:
    """The Python of the environment, which is made first if it is not there or has other versions.

    Raises:
        RayTrainUnavailable: a package cannot be installed.
    """
    folder = cache_home() / "muster-benchmarks" / "ray-train"
    python, made = folder / "bin" / "python", folder / "installed.txt"
    torch = importlib.metadata.version("torch").partition("+")[0]
    ray = importlib.metadata.version("ray")
    wanted = f"torch {torch}, ray[train] {ray}, muster from {ROOT}\n"
    if made.is_file() and made.read_text() == wanted:
        return python
    print(f"making the environment of the peer Ray Train in {folder}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    # torch first and alone: pip then takes this platform's build of that version for all that follows.
    for packages in ([f"torch=={torch}"], [f"ray[train]=={ray}"], ["--editable", f"{ROOT}[samples]"]):
        installed = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *packages],
            capture_output=True,
            text=True,
            check=False,
        )
        if installed.returncode != 0:
            raise RayTrainUnavailable(f"pip install {' '.join(packages)}: {installed.stderr.strip()[-500:]}")
    made.write_text(wanted)
    return python
