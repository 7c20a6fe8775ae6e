"""What `fastvsock doctor` checks: this machine, and a VMM's socket."""
