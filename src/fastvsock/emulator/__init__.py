"""The VMM's side of a hybrid vsock and a guest behind it, without a VM: for demos, tests and development."""
