"""Several processes as one worker: a parent that starts them, stops them, and shows their metrics as one worker's.

The parent does no work itself and imports none of the modules that do. :mod:`worker.parent.run` is its tree of tasks.
"""
