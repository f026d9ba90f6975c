"""Suites that are not ours, run against what we speak."""
