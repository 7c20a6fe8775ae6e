"""Linux, without a word about vsock: addresses, sockets' files, processes, sock_diag."""
