"""Backups that a server makes by itself.

Law: a backup is complete and verified before it has its name. Only what has such a name is ever removed.
"""
