"""Channels: work in a guest over one connection each, exec and dial, without ssh. The host's side, and the protocol."""
