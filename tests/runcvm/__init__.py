"""Bundles to test with, and the scripts in them."""
