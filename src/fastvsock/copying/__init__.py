"""Copies between host and guest: the walk of a source, the entries on the wire, and a receiver that trusts nobody."""
