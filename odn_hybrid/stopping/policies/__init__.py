"""Halting policies: scores and calibration, tables, families fitted by backward induction, evaluation."""
