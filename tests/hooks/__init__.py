"""Tests of webhooks: real servers, real receivers."""
