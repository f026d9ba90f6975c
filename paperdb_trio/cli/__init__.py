"""The command `paperdb`.

Law: a command reads options, calls one function, prints its result; what takes long to import is imported
by the command that needs it.
"""

from paperdb_trio.cli import access, data, listen, serve
from paperdb_trio.cli.base import main

__all__ = ["access", "data", "listen", "main", "serve"]
