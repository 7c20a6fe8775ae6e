"""The services: what `fastvsock proxy` and `fastvsock listen` share."""
