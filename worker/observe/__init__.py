"""Sinks of events: logs and metrics; the server that shows them."""
