"""API keys, plans and tokens: who may do what.

Law: decides, never responds; knows no route and no socket. A key is never stored or logged, only its SHA-256,
which is enough for 256 random bits.
"""
