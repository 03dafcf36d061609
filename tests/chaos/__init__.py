"""Faults of real processes: workers, nats-servers, HTTP servers and the connections between them.

``make chaos`` (``python -m tests.chaos``) keeps a queue busy while a schedule of faults, drawn from a seed, causes
each of them several times. Then all faults end, the queue runs empty, and a ledger checks message by message which were
published, invoked, called back and given up. In order of reading:

* :mod:`tests.chaos.faults`: the faults, one function each;
* :mod:`tests.chaos.system`: the processes and connections that the faults affect;
* :mod:`tests.chaos.publisher`: the source of the messages;
* :mod:`tests.chaos.history`: the records of a run;
* :mod:`tests.chaos.ledger`: the promises that must hold for every message;
* :mod:`tests.chaos.report`: the report.
"""
