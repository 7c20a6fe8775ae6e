"""What listens: the machinery that `fastvsock proxy` and `fastvsock listen` share."""
