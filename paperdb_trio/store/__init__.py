"""Documents, the change log and the accounts, in one SQLite file.

Law: opens no socket and speaks no protocol. A refusal is an `ApiError`, whose status says what kind it is: one
list of refusals serves REST, WebSockets and the command line. Who wants to hear of commits hands the writer a
callable.
"""
