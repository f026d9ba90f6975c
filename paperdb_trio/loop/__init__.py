"""Turns of the event loop, and one timer for all connections.

Law: knows nothing of what takes the turns.
"""
