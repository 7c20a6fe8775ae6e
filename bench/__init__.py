"""Benchmarks of fastvsock against every other way to move the same bytes. README.md says how to run and read them.

- `measures` lists what is measured, `peers` who takes part; `build_c` builds the C programs among them;
- `rig` measures one peer once, between its `ends`, and gives a `sample`; `process_tree` counts CPU time and memory of
  all processes of the peer, `memory_group` what the kernel holds for them, `user` makes them an ordinary user's;
- `exec` and `cp` measure programs with a server in the guest (`served`), which the classes of `ways` and `copiers`
  describe; `kubectl` measures what its users wait for;
- `rounds` interleaves the peers and writes what pyperf reads, with a description of the `machine`;
- `results` reads it again and pairs the ratios; `report`, `targets`, `chart` and `plots` show them.

A peer is added in `peers`, `ways` or `copiers`, a measure in `measures` or the module of its command, nowhere else.
"""
