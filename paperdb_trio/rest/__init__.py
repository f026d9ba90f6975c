"""REST: plain async functions from a request to an answer, and the doors that they are reached by.

Law: `handlers` and `routes` know of no socket and no framework; one table of routes feeds every door.
"""
