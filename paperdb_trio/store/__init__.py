"""Documents, the change log and the accounts, in one SQLite file.

Law: knows nothing of HTTP or sockets; whoever wants to hear of commits hands the writer a callable.
"""
