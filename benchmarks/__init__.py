"""The speed of the worker beside its peers: ``make bench``. docs/performance.md describes all measurements.

Read in this order: :mod:`benchmarks.stage` is one run, a broker, a function server and a contender on it (with
:mod:`benchmarks.programs` and :mod:`benchmarks.queue` below it);
:mod:`benchmarks.contenders` who they are; each module of :mod:`benchmarks.figures` measures one line of the table;
:mod:`benchmarks.report` writes it. The peers are whole little programs, in ``benchmarks/peers``.
"""
