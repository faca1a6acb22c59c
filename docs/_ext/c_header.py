"""The directive ``c-header``: sections, comments and declarations of a C header as a reference."""

import re
import textwrap
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

_COMMENT = re.compile(r"/\*(.*?)\*/", re.S)
_NAME = re.compile(r"\b(bnnumba_\w+)\(|\} (\w+);|typedef struct \w+ (\w+);|#define (\w+)")


def _text(comment):
    """Return a comment without its stars."""
    lines = [re.sub(r"^\s*\*? ?", "", line, count=1) for line in comment.strip("\n").splitlines()]
    return textwrap.dedent("\n".join(lines)).strip("\n ")


def _prose(text):
    """Return nodes for a comment: paragraphs, and indented blocks as they are."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        lines = block.splitlines()
        # A line that introduces an indented block stands right above it at times.
        cut = next((i for i, line in enumerate(lines) if line.startswith("    ")), len(lines))
        if lines[0].startswith("- "):
            items = re.split(r"\n(?=- )", block)
            found.append(nodes.bullet_list("", *(_item(item) for item in items)))
            continue
        if cut:
            paragraph = " ".join(line.strip() for line in lines[:cut])
            found.append(nodes.paragraph("", paragraph))
        if cut < len(lines):
            code = textwrap.dedent("\n".join(lines[cut:]))
            found.append(nodes.literal_block(code, code, language="none"))
    return found


def _item(text):
    flat = " ".join(line.strip() for line in text[2:].splitlines())
    return nodes.list_item("", nodes.paragraph("", flat))


def _section(title, *content):
    node = nodes.section("", nodes.title("", title), *content, ids=[nodes.make_id(title)])
    node["names"].append(nodes.fully_normalize_name(title))
    return node


def _sections(header):
    """Yield (title, comment, body) for each part under a banner."""
    parts = re.split(r"/\* =+\n(.*?)\* =+ \*/", header, flags=re.S)
    for banner, body in zip(parts[1::2], parts[2::2], strict=True):
        title, _, comment = _text(banner).partition("\n")
        yield title.strip(), comment.strip("\n "), body


def _entries(body):
    """Yield (comment, declaration) for everything that a part declares."""
    body = re.sub(
        r"/\* cffi: [\w ]+ \*/\n|^#(?:if|endif|ifdef|ifndef|pragma).*\n", "", body, flags=re.M
    )
    at = 0
    while (match := _COMMENT.search(body, at)) is not None:
        end = _end(body, match.end())
        declaration = body[match.end() : end].strip("\n ")
        at = end
        if declaration:
            yield _text(match[1]), declaration


def _end(body, begin):
    """Return where the declaration after a comment ends: at the empty line outside of braces."""
    depth, at = 0, begin
    while at < len(body):
        depth += (body[at] == "{") - (body[at] == "}")
        if body.startswith("\n\n", at) and depth == 0:
            return at
        at += 1
    return at


class CHeader(Directive):
    """The header, in its own order."""

    required_arguments = 1
    has_content = False

    def run(self):
        environment = self.state.document.settings.env
        path = Path(environment.srcdir) / self.arguments[0]
        environment.note_dependency(str(path))
        sections = []
        for title, comment, body in _sections(path.read_text()):
            section = _section(title, *(_prose(comment) if comment else []))
            for text, declaration in _entries(body):
                found = _NAME.search(declaration)
                name = next(filter(None, found.groups())) if found else declaration
                code = nodes.literal_block(declaration, declaration, language="c")
                section += _section(name, *_prose(text), code)
            sections.append(section)
        return sections


def setup(app):
    """Offer the directive."""
    app.add_directive("c-header", CHeader)
    return {"parallel_read_safe": True}
