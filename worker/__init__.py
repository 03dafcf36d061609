"""A queue-worker for OpenFaaS on NATS JetStream.

A *delivery* becomes an *invocation*, the invocation an *outcome*, the outcome a *verdict*, and the verdict is
*settled*. To follow one message, read in this order:

1. :mod:`worker.intake` receives it. :mod:`worker.policy.ledger` decides whether it starts.
2. :mod:`worker.job` runs it: :mod:`worker.policy.decode` makes the request, :mod:`worker.policy.decide` the verdict.
3. :mod:`worker.heartbeat` extends its lease until :func:`worker.job.settle` ends it.
4. :mod:`worker.policy.shares` decides which flow gets the free slot; :mod:`worker.policy.limiter` and
   :mod:`worker.admission`, how many slots one function may have.

:mod:`worker.run` is the tree of tasks around all that: its blocks end from the inside out. :mod:`worker.events` lists
what can be observed. ``docs/architecture.md`` is the tour.
"""

__version__ = "0.1.0"
