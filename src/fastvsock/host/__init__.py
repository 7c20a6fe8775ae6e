"""What Linux offers, with no knowledge of vsock: addresses, socket files, processes, sock_diag."""
