"""The guest's side of channels: listens, and does what the host asks for, one connection at a time each."""
