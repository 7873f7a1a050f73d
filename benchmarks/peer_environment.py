"""Virtual environments for peers, made on demand outside the checkout, in ``$XDG_CACHE_HOME/muster-benchmarks``.

Peers need packages that Muster does not. They get the same torch as Muster has here, so that only what is compared differs.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOWER = "1.42.0"
FLOW_PEERS = ("distributed==2026.8.0", "parsl==2026.10.26")
STREAMING = ("mosaicml-streaming==0.13.0", "webdataset==1.0.2", "pillow")


class PeerUnavailable(Exception):
    """An environment cannot be made; says why."""


def cache_home() -> Path:
    """Where this user's caches are."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def ray_train_python() -> Path:
    """The Python of Ray Train's environment: the same Ray, and Muster itself for its model.

    Raises:
        PeerUnavailable: a package cannot be installed.
    """
    ray = importlib.metadata.version("ray")
    return _python("ray-train", [f"ray[train]=={ray}"], ["--editable", f"{ROOT}[samples]"])


def streaming_python() -> Path:
    """The Python of MosaicML streaming and WebDataset.

    Raises:
        PeerUnavailable: a package cannot be installed.
    """
    return _python("streaming", STREAMING)


def byzfl_python() -> Path:
    """The Python of ByzFL; without torchvision and the plotting packages, which its aggregators do not use.

    Raises:
        PeerUnavailable: a package cannot be installed.
    """
    return _python("byzfl", ["--no-deps", "byzfl==0.0.11"], ["numpy", "scipy"])


def flower_python() -> Path:
    """The Python of Flower with its simulation.

    Raises:
        PeerUnavailable: a package cannot be installed.
    """
    return _python("flower", [f"flwr[simulation]=={FLOWER}"])


def flow_peers_python() -> Path:
    """The Python of Dask distributed and Parsl.

    Raises:
        PeerUnavailable: a package cannot be installed.
    """
    return _python("flow", FLOW_PEERS, torch=False)


def _python(name: str, *packages: Sequence[str], torch: bool = True) -> Path:
    """The Python of an environment, which is made first if it is not there or has other versions."""
    folder = cache_home() / "muster-benchmarks" / name
    python, made = folder / "bin" / "python", folder / "installed.txt"
    # torch first and alone: pip then takes this platform's build of that version for all that follows.
    version = importlib.metadata.version("torch").partition("+")[0]
    every = [[f"torch=={version}"]] * torch + list(packages)
    wanted = "\n".join(" ".join(each) for each in every)
    if made.is_file() and made.read_text() == wanted:
        return python
    print(f"making the environment of the peer {name} in {folder}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    for each in every:
        installed = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *each], capture_output=True, text=True, check=False
        )
        if installed.returncode != 0:
            raise PeerUnavailable(f"pip install {' '.join(each)}: {installed.stderr.strip()[-500:]}")
    made.write_text(wanted)
    return python
