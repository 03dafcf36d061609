"""A queue-worker for OpenFaaS on NATS JetStream.

A *delivery* becomes an *invocation*, the invocation an *outcome*, the outcome a *verdict*, and the verdict is
*settled*. To follow one message, read in this order: :mod:`worker.intake` takes it, :mod:`worker.job` tells its
story, :mod:`worker.policy.decode` and :mod:`worker.policy.decide` are the two decisions in it,
:mod:`worker.heartbeat` keeps it ours meanwhile, :mod:`worker.settle` ends it. Which function's message comes next is
:mod:`worker.policy.shares`'s to say, and how many of one, :mod:`worker.policy.limiter`'s. :mod:`worker.run` is the
tree of tasks around all that; reading its indentation from the inside out gives the order of shutdown.
``docs/architecture.md`` is the tour.
"""

__version__ = "0.1.0"
