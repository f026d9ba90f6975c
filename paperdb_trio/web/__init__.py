"""What a browser or Node gets from the server: the JavaScript SDK.

Law: files that are served as they are. Python here reads them once, at start; nothing in this room knows of
documents, tokens or sockets. What is in `sdk/` is what is served; only for `require` does the tarball have the
same modules once more, made into CommonJS (`commonjs.py`).
"""
