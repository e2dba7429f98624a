"""The site of the documentation: ``python -m sphinx -W -b html docs outputs/site``."""

project = "xfer"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "xfer"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["phone.css"]
# Blocks that name no language are what commands print.
highlight_language = "none"
# Levels of headings that a link may name, as on GitHub.
myst_heading_anchors = 4
