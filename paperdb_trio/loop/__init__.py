"""Fair use of the event loop, and one timer for all connections.

Law: knows nothing about the work that uses the loop.
"""
