"""Depth in the limit: bounds on the optimal depth, and continuous depth as a free boundary problem."""
