"""Halting policies chosen from recorded outputs, and what is promised of them."""
