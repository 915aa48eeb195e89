"""Sphinx: the pages of this directory as a site, `make docs` builds it into site/."""

project = "phema"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
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
# Fields are described once, where a class lists its attributes; types stand in signatures.
napoleon_use_ivar = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
# Names of other projects lead nowhere: their inventories would have to be fetched.
nitpick_ignore_regex = [(r"py:.*", r"(?!phema_cli\.).*")]
# What objects are made of inside, and nobody makes by hand.
nitpick_ignore = [
    ("py:class", "phema_cli.formats.base.Checkpoint"),
    ("py:class", "phema_cli.snapshots.base.Untagged"),
    ("py:class", "phema_cli.solver.movement.Movement"),
    ("py:class", "phema_cli.synthesis.recipe.Recipe"),
]
