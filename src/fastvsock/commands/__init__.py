"""One module a subcommand: its arguments, its output, its exit code; no mechanism."""
