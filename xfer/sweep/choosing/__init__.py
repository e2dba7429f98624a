"""Choosing a backbone, a head and a freeze policy, and judging the choosing itself."""
