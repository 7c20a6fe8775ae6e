"""Benchmarks of fastvsock against every other way to move the same bytes. README.md tells how to run and read them.

- `measures` says what is measured, `peers` who is, `programs` builds the C programs among them;
- `sample` measures one peer once, with `tree` counting the CPU time of all the processes that the peer is made of;
- `rounds` goes round the peers, and writes what pyperf reads, with `machine` describing where it was;
- `figures` reads it again and pairs the ratios; `report` and `pictures` show them.

A peer is added in `peers`, a measure in `measures`, and nowhere else.
"""
