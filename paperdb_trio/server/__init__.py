"""The processes of `paperdb serve`: what runs in each, in which order it starts, and how it stops.

`serving` serves clients: alone, together with the writer, or as one of several workers. `supervisor` starts
workers and the process in `writing`, over which `link` and `board` connect them.
"""
