"""The listener and who answers behind it: our own HTTP/1.1, Hypercorn with the Quart app for HTTP/2.

Law: nothing imports this but `server`.
"""
