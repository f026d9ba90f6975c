"""From a commit to the bytes that each subscriber gets: hub, lanes, subscribers, encodings.

Law: knows nothing of sockets, HTTP or `Services`; a sink is all that it writes to.
"""
