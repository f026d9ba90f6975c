"""Clients of the server, in Python.

Law: talks to a server over HTTP and WebSocket only; imports nothing of `store`, `rest` or `net`.
"""
