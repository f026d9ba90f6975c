"""API keys, plans and tokens: who may do what.

Law: decides, never answers; knows of no route and no socket. A key is never stored nor logged, only its
SHA-256, which is enough for 256 random bits.
"""
