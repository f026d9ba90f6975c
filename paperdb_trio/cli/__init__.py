"""The command `paperdb`.

Law: a command reads options, calls one function, prints its result; a slow import happens only in the command
that needs it.
"""

from paperdb_trio.cli import access, data, listen, serve, settings, types, webhooks
from paperdb_trio.cli.base import main

__all__ = ["access", "data", "listen", "main", "serve", "settings", "types", "webhooks"]
