"""Answers and what they are worth: metrics, statistics, prediction."""
