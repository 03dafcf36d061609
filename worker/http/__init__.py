"""The adapter to HTTP: functions and callbacks. Imported by cli only."""
