"""Finite-sample statements: exact and sequential tests, certificates, non-inferiority."""
