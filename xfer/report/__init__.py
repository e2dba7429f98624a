"""Figures and the run card. Importing this imports neither torch nor matplotlib."""
