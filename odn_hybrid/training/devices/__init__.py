"""Devices and processes: precision, sharing of batches, sharded weights, repeatable and compiled steps."""
