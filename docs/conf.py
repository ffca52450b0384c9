"""Settings of the site; `tools/site.py` puts its pages together. No page loads anything from elsewhere."""

from latex2mathml.converter import convert

project, author, copyright = "Sieve", "The Sieve authors", "2026, The Sieve authors"
extensions = ["myst_nb"]
html_theme, html_title = "furo", "Sieve"
html_copy_source = html_show_sourcelink = False
html_math_renderer = "mathml"
exclude_patterns = ["_build", "conf.py"]
nb_execution_mode = "off"  # the notebooks are saved with their outputs
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
# notebooks begin anew at # within a page, and some show code in a language of their own
suppress_warnings = ["myst.header", "misc.highlighting_failure", "mystnb.unknown_mime_type"]


def _formula(block):
    def visit(self, node):
        self.body.append(convert(node.astext(), display="block" if block else "inline"))
        from docutils.nodes import SkipNode

        raise SkipNode

    return visit, None


def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=_formula(False), block_renderers=_formula(True))
