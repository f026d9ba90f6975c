"""Webhooks: each change is posted to URLs, in order, from a durable cursor.

Law: knows the change log and HTTP as a client, no request and no connection of the server.
"""
