"""The producer: from HTTP onto the queue."""
