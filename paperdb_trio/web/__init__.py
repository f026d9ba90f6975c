"""What a browser or Node gets from the server: the JavaScript SDK.

Law: files that are served as they are. Python here reads them once, at start; nothing in this room knows of
documents, tokens or sockets, and no build step stands between what is in `sdk/` and what is served.
"""
