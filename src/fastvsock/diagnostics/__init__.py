"""What `fastvsock doctor` looks at: this machine and a VMM's socket."""
