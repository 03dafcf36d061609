"""Decisions. Nothing here waits, reads a clock, or rolls a die: time and chance are arguments."""
