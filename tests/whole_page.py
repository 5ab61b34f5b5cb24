"""Checks of a page: one file that needs nothing else, in which nothing runs."""

import html.parser


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def checked(text):
    """The elements of a page that needs nothing else, runs nothing and says what its pictures show."""
    found = Elements(text).found
    assert not {"script", "iframe", "link", "object", "embed", "base", "form"} & {tag for tag, _ in found}
    for tag, attributes in found:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in {"src", "href", "xlink:href", "srcset", "data", "action"} & set(attributes):
            # A link in a model card goes where the weights are from. It is followed only if a reader clicks it.
            followed = tag == "a" and attributes[name].startswith("https://")
            assert followed or attributes[name].startswith(("#", "data:")), (tag, attributes)
    assert "url(http" not in text and "@import" not in text
    ids = [attributes["id"] for tag, attributes in found if "id" in attributes and tag not in ("path", "g", "clippath")]
    assert len(ids) == len(set(ids))
    drawings = [attributes for tag, attributes in found if tag == "svg"]
    assert drawings and all(a["role"] == "img" and a["aria-labelledby"] in ids for a in drawings)
    assert "prefers-color-scheme: dark" in text and "@media print" in text and "width=device-width" in text
    assert ("meta", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in [
        (t, a.get("content")) for t, a in found
    ]
    return found
