"""The adapter to JetStream. Imported by cli only."""
