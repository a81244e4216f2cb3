"""Solvers: learning-rate policies, updates, snapshots and exact resume."""
