"""The site of the documentation: ``python -m sphinx -W docs outputs/site``."""

project = "xfer"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "xfer"
myst_heading_anchors = 4
exclude_patterns = ["levels.py"]
