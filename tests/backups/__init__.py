"""Tests of the backups that a server makes by itself."""
