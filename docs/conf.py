"""How Sphinx makes the site of these pages: `make docs`."""

import re
from itertools import pairwise
from typing import Any

import sphinx.search
from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

project = "likelier"
language = "ko"  # of what the site itself says
html_title = "likelier"
extensions = ["myst_parser"]
myst_heading_anchors = 3  # links to headings, as on the pages of a repository
highlight_language = "none"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_search_summary = False  # a page opened from a disk may not read others
html_search_language = "ko"


class SearchKorean(SearchEnglish):
    """Korean by every two syllables that follow each other, English by its stems.

    Korean words stand with endings (모델은, 모델을), so that whole words would not be found.
    """

    lang = "ko"
    language_name = "English"  # the name of the stemmer in the page
    _piece = re.compile(r"[가-힣]+|[^\W가-힣]+")
    js_splitter_code = """
var splitQuery = (query) =>
  (query.match(/[가-힣]+|(?:(?![가-힣])[\\p{Letter}\\p{Number}_])+/gu) || []).flatMap((piece) =>
    /^[가-힣]{2}/.test(piece)
      ? [...piece].slice(1).map((syllable, at) => piece[at] + syllable)
      : [piece]);
"""

    def split(self, input: str) -> list[str]:
        """Every two syllables and every one of Korean, and the words of the rest."""
        found = []
        for piece in self._piece.findall(input):
            if "가" <= piece[0] <= "힣":
                found += [*piece, *map("".join, pairwise(piece))]
            else:
                found.append(piece)
        return found


def _say_the_language(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any
) -> None:
    """Pages say what language they are in: for readers aloud, fonts and translators."""
    context["language"] = "ko" if page == "index" or page.startswith("ko/") else "en"


def _leave_the_repository_out(app: Sphinx, page: str, source: list[str]) -> None:
    """A link to a file beside these pages, which the site has not, becomes its text."""

    def text(link: re.Match[str]) -> str:
        file = (app.srcdir / page).parent.joinpath(link[2]).resolve()
        beside = file.exists() and not file.is_relative_to(app.srcdir)
        return link[1] if beside else link[0]

    source[0] = re.sub(r"\[([^\]]+)\]\((\.\./[^)#]+)[^)]*\)", text, source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _leave_the_repository_out)
    sphinx.search.languages["ko"] = SearchKorean
    app.connect("html-page-context", _say_the_language)
