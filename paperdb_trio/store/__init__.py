"""Documents, the change log and the accounts, in one SQLite file.

Law: opens no socket and speaks no protocol. A refusal is an `ApiError` whose status says what kind it is: one
list of refusals serves REST, WebSockets and the command line. The writer reports commits to a callable that it
is given.
"""
