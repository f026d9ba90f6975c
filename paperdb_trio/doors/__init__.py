"""The listener and the servers behind it: our own HTTP/1.1, and Hypercorn with the Quart app for HTTP/2.

Law: only `server` imports this.
"""
