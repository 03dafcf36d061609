"""Benchmarks of the worker and its peers: ``make bench``. docs/performance.md describes all measurements.

In order of reading: :mod:`benchmarks.stage` is one run of a broker, a function server and a contender (with
:mod:`benchmarks.programs` and :mod:`benchmarks.queue` below it);
:mod:`benchmarks.contenders` lists the contenders; each module of :mod:`benchmarks.figures` measures one figure;
:mod:`benchmarks.report` writes the tables. The peers are small complete programs, in ``benchmarks/peers``.
"""
