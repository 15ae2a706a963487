"""Reads HTML pages in tests."""

from html.parser import HTMLParser

SCRIPT = "<script>alert('x')</script>\"&"


class Page(HTMLParser):
    """Tags, attributes, and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.words = set(), {}, ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)

    def handle_data(self, data):
        self.words += data


def safe_page(html):
    """The page, after a check that no script and no unexpected attribute is in it."""
    page = Page(html)
    assert "script" not in page.tags and "<script" not in html
    assert set(page.attributes) <= {"lang", "charset", "name", "content", "class", "alt", "width", "src", "href"}
    return page
