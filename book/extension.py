"""Sphinx extension of this book: generated parts, alternative texts of figures, audio."""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from zqlib.book.listening import write_audio
from zqlib.book.pages import GENERATED


class Generated(SphinxDirective):
    """`{generated} NAME`: Markdown made from the records while the book is built, never stale."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse what the function of that name writes."""
        name = self.arguments[0]
        if name not in GENERATED:
            raise self.error(f"Nothing is generated under the name {name!r}.")
        return self.parse_text_to_nodes(GENERATED[name](Path(self.env.srcdir)))


def describe_figures(app: Sphinx, document: nodes.document) -> None:
    """Give a figure of a notebook that has no alternative text one that says where it stands."""
    for image in document.findall(nodes.image):
        if not image.get("alt"):
            titles = []
            node = image.parent
            while node is not None:
                if isinstance(node, nodes.section):
                    titles.append(node[0].astext())
                node = node.parent
            image["alt"] = f"Figure: {', '.join(titles)}"


def without_live_code(
    app: Sphinx, page: str, template: str, context: dict[str, Any], document: nodes.document | None
) -> None:
    """Drop the scripts of thebe: they would ask a server, and one of them, loaded twice, fails."""
    context["script_files"] = [
        script
        for script in context["script_files"]
        if "thebe" not in f"{script.filename} {script.attributes}".lower()
    ]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("generated", Generated)
    app.connect("doctree-read", describe_figures)
    app.connect("html-page-context", without_live_code)
    audio = Path(app.outdir).parent / "audio"
    write_audio(Path(app.srcdir), audio)
    app.config.html_static_path += [str(Path(app.srcdir) / "book" / "static"), str(audio)]
    app.add_css_file("book.css")
    app.add_js_file("tables.js", loading_method="defer")
    return {"parallel_read_safe": True}
