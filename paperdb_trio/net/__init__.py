"""Sockets: the one accept loop, the stream of a connection, and what its first bytes are.

Law: whatever a peer does ends at most its own connection.
"""
