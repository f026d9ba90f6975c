"""What a browser or Node gets from the server: the JavaScript SDK and the dashboard.

Law: files are served as they are. The Python here reads them once, at start; nothing in this room knows of
documents, tokens or sockets. `sdk/` is what is served. The tarball also has each module as CommonJS, for
`require` (`commonjs.py`).
"""
