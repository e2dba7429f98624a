"""Fitting: what trains on a plan's data, and how."""
