"""The operating systems that Muster runs on."""

from __future__ import annotations

import sys

from muster.errors import UnsupportedPlatform


def platform_check(platform: str = sys.platform) -> None:
    """Refuses anything but Linux.

    Raises:
        UnsupportedPlatform: says what to do instead.
    """
    if platform != "linux":
        system = {"darwin": "macOS", "win32": "Windows", "cygwin": "Cygwin"}.get(platform, platform)
        raise UnsupportedPlatform(
            f"Muster runs on Linux only, and this is {system}; "
            "use a Linux machine, container or virtual machine (on Windows: WSL 2)"
        )
