"""Several processes as one worker: a parent that starts them, ends them, and shows them as one.

It does no work itself, and imports nothing of what does. :mod:`worker.parent.run` is its tree of tasks,
:mod:`worker.parent.processes` keeps the processes going, :mod:`worker.parent.control_socket` is how they talk.
"""
