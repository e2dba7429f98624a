"""Weights that exist already: sources, file formats, hubs, MindSpore, and how they are matched."""
