"""Subscriptions: cursors over the change log.

Law: `frames` and `protocol` do no I/O; `hub` and `subscriber` know of sinks, not of sockets; `gateway` is
where a WebSocket, a token and a subscriber meet.
"""
