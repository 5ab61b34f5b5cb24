"""Markdown to HTML, for the model cards on pages."""

import markdown_it

from lae_jax.runtime import foreign


def html(text: str, below: int) -> str:
    """Converts Markdown to HTML, without raw HTML and without images, which a page would fetch.

    Aligned table cells get the class left, right or center, because pages may forbid the attribute `style`.

    Args:
      text: Markdown.
      below: Level of the heading that the text is under; its own headings start one level lower.
    """
    parser = markdown_it.MarkdownIt("js-default").disable("image")
    tokens = parser.parse(foreign.shown_lines(text))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + below)}"
        if style := token.attrs.pop("style", None):
            token.attrs["class"] = style.removeprefix("text-align:")
    return parser.renderer.render(tokens, parser.options, {})
