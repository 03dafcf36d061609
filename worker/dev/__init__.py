"""``queue-worker dev``: NATS, gateway, demo functions and a worker, each a child process of one Trio program."""
