"""The store over one SQLite file.

Law: nothing outside of `store`, the command line and the start of the server imports these modules.
"""
