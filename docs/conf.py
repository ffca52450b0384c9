"""Settings of the site; `tools/site_pages.py` puts its pages together. No page loads anything from elsewhere."""

from pathlib import Path

from latex2mathml.converter import convert

project, author, copyright = "Sieve", "The Sieve authors", "2026, The Sieve authors"
extensions = ["myst_nb"]
html_theme, html_title = "furo", "Sieve"
html_copy_source = html_show_sourcelink = False
html_math_renderer = "mathml"
html_static_path, html_css_files = ["_static"], ["site.css"]
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


MENDED = {  # what the theme and the notebooks leave without a name or out of reach of the keyboard -> what stands there
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="Site">',
    '<aside class="toc-drawer': '<aside aria-label="On this page" class="toc-drawer',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
    "<pre>": '<pre tabindex="0">',
    "<th></th>": "<td></td>",
    "<div>\n<style scoped>": '<div class="shown" tabindex="0">\n<style scoped>',
}


def _mend(app, failed):
    for path in [] if failed else Path(app.outdir).rglob("*.html"):
        text = path.read_text()
        for old, new in MENDED.items():
            text = text.replace(old, new)
        path.write_text(text)


def setup(app):
    app.connect("build-finished", _mend)
    app.add_html_math_renderer("mathml", inline_renderers=_formula(False), block_renderers=_formula(True))
