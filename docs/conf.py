"""Sphinx: the pages of this directory as a site, `make docs` builds it into site/."""

project = "phema"
extensions = ["myst_parser"]
exclude_patterns = ["schemas"]
html_theme = "furo"
html_title = "phema"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
# Headings down to the third level are targets of links, as on GitHub.
myst_heading_anchors = 3
# Sessions show a prompt and what was printed, which is no code to be coloured.
highlight_language = "none"
