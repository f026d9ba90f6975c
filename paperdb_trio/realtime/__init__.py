"""Live connections: WebSockets and event streams.

Law: `protocol` and `handshake` do no I/O; `gateway` brings a connection, a token and a subscriber together.
"""
