"""Faults for real: worker processes, nats-servers, HTTP servers and the ways between them, all made to fail.

``make chaos`` (``python -m tests.chaos``) keeps a queue busy while a schedule of faults, drawn from a seed, causes
each of them several times. Then all faults end, the queue runs empty, and a ledger checks message by message which were
published, invoked, called back and given up. In order of reading:

* :mod:`tests.chaos.faults`: the faults, one function each;
* :mod:`tests.chaos.stage`: the processes and connections that the faults strike;
* :mod:`tests.chaos.supply`: the publisher of the messages;
* :mod:`tests.chaos.history`: the records of a run;
* :mod:`tests.chaos.ledger`: the check of every message against these records;
* :mod:`tests.chaos.report`: the tables of docs/reliability.md.
"""
