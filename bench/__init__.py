"""Benchmarks of fastvsock against every other way to move the same bytes. README.md says how to run and read them.

- `measures` lists what is measured, `peers` who takes part; `build_c` builds the C programs among them;
- `rig` measures one peer once; `process_tree` counts CPU time and memory of all processes of the peer, `memory_group`
  what the kernel holds for them, and `user` makes them an ordinary user's;
- `rounds` interleaves the peers and writes what pyperf reads, with a description of the `machine`;
- `results` reads it again and pairs the ratios; `report`, `chart` and `plots` show them.

A peer is added in `peers`, a measure in `measures`, and nowhere else.
"""
