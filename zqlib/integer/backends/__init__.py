"""Backends other than the reference; each computes the same integers, bit for bit."""
