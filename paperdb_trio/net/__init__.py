"""Bytes and framing: a connection's stream, TLS, HTTP/1.1, WebSocket frames, CORS.

Law: a peer can end only its own connection.
"""
