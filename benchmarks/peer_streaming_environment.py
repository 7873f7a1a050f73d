"""A virtual environment for the peers MosaicML streaming and WebDataset, made on demand outside the checkout.

Both need packages that Muster does not. They get the same torch as Muster has here, so that only the loaders differ, in
``$XDG_CACHE_HOME/muster-benchmarks/streaming``.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import venv
from pathlib import Path

from ray_train_environment import cache_home

PEERS = ("mosaicml-streaming==0.13.0", "webdataset==1.0.2", "pillow")


class PeersUnavailable(Exception):
    """The environment cannot be made; says why."""


def peers_python() -> Path:
    """The Python of the environment, which is made first if it is not there or has other versions.

    Raises:
        PeersUnavailable: a package cannot be installed.
    """
    folder = cache_home() / "muster-benchmarks" / "streaming"
    python, made = folder / "bin" / "python", folder / "installed.txt"
    torch = importlib.metadata.version("torch").partition("+")[0]
    wanted = f"torch {torch}, {', '.join(PEERS)}\n"
    if made.is_file() and made.read_text() == wanted:
        return python
    print(f"making the environment of the streaming peers in {folder}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    # torch first and alone: pip then takes this platform's build of that version for all that follows.
    for packages in ([f"torch=={torch}"], list(PEERS)):
        installed = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *packages],
            capture_output=True,
            text=True,
            check=False,
        )
        if installed.returncode != 0:
            raise PeersUnavailable(f"pip install {' '.join(packages)}: {installed.stderr.strip()[-500:]}")
    made.write_text(wanted)
    return python
