"""Markdown as HTML, for pages: model cards."""

import markdown_it


def html(text: str, below: int) -> str:
    """Without HTML of its own and without pictures, which a page would fetch. below: level that headings go under.

    Cells are of class left, right or center where the Markdown says so: pages that take no style forbid the attribute.
    """
    parser = markdown_it.MarkdownIt("js-default").disable("image")
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + below)}"
        if style := token.attrs.pop("style", None):
            token.attrs["class"] = style.removeprefix("text-align:")
    return parser.renderer.render(tokens, parser.options, {})
