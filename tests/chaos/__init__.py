"""Faults for real: worker processes, nats-servers, HTTP servers and the ways between them, all made to fail.

``make chaos`` (``python -m tests.chaos``) keeps a queue busy while a schedule of faults, drawn from a seed, works
through everything that can go wrong; then everything is healed, the queue runs empty, and a ledger of what was
published, invoked, called back and given up is checked message by message. In order of reading:

* :mod:`tests.chaos.faults`: what can go wrong, one function a fault;
* :mod:`tests.chaos.stage`: what they befall;
* :mod:`tests.chaos.supply`: where the messages come from;
* :mod:`tests.chaos.history`: what is recorded;
* :mod:`tests.chaos.ledger`: what must be true of every message, whatever happened;
* :mod:`tests.chaos.report`: what is told of it.
"""
