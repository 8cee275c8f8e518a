"""How Sphinx makes the slides: reveal.js from the package, no request to anybody."""

project = "PrefMoE in miniature: 90 minutes"
author = copyright = "The contributors to the PrefMoE companion"
language = "en"

extensions = ["myst_parser", "sphinx_revealjs"]
exclude_patterns = ["conf.py", "made/**"]
myst_enable_extensions = ["colon_fence"]
myst_url_schemes = {"book": "../{{path}}.html"}  # pages of the book, which stand one folder above the slides

revealjs_style_theme = "white"
revealjs_static_path = ["_static"]
revealjs_css_files = ["slides.css"]
revealjs_use_section_ids = True
revealjs_script_conf = {
    "width": 1280, "height": 720, "margin": 0.04, "center": False, "hash": True, "slideNumber": "c/t",
    "transition": "none", "pdfSeparateFragments": False,
}  # fmt: skip
revealjs_script_plugins = [{"src": "revealjs/plugin/notes/notes.js", "name": "RevealNotes"}]
html_copy_source = False
html_show_sphinx = False
