"""From a commit to the bytes that each subscriber gets: hub, feeds, subscribers, encodings.

Law: knows nothing of sockets, HTTP or `Services`. It writes to sinks only.
"""
