"""Benchmarks of fastvsock against every other way to move the same bytes. README.md says how to run and read them.

- `measures` lists what is measured, `peers` who takes part; `build_c` builds the C programs among them;
- `rig` measures one peer once; `process_tree` counts the CPU time of all the processes of which the peer consists;
- `rounds` interleaves the peers and writes what pyperf reads, with a description of the `machine`;
- `results` reads it again and pairs the ratios; `report` and `plots` show them.

A peer is added in `peers`, a measure in `measures`, and nowhere else.
"""
