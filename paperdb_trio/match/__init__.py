"""The matcher: which queries a change concerns, and what each of them shows of it.

Law: no I/O. It knows no sockets, feeds, services or SQL, only filters, documents and changes.
"""
