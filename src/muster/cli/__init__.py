"""The command line: one module per verb. May import everything; nothing imports it.

Modules here import the rest of Muster inside their functions, so that ``muster --help`` answers at once.
"""

from muster.cli.command_line import main

__all__ = ["main"]
