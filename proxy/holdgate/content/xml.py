"""XML bytes become a record of names, text and lists, or are refused.

`<Delete xmlns="u"><Object><Key>k</Key></Object></Delete>` becomes
`{"Delete": {"@ns": "u", "Object": {"Key": "k"}}}`. An element that occurs several times under
one parent is a list; one that occurs once is not (XML cannot tell), so readers of lists take
both. Attributes are `@name`, the text of an element that has attributes too is `#text`.
A name in another namespace than its parent's is written `{uri}name` and matches no map.

Invariants (tests/test_content_xml.py):
  X1  No DTD, comment, CDATA section, processing instruction or entity but the five (and
      character references): text is what it looks like.
  X2  Encoding is UTF-8, declared or not, and no byte makes the parser guess another.
  X3  Namespaces are part of names; prefixes never are.
  X4  Text beside elements refuses the document; white space between elements is no text.
  X5  Depth, the number of elements and the length of a namespace are bounded.
"""

from __future__ import annotations

from typing import Final
from xml.parsers import expat  # external entities cannot occur: any `<!` is refused before parsing

from ..errors import InputError, Reason

__all__ = ["XmlValue", "parse_xml"]

type XmlValue = str | list[XmlValue] | dict[str, XmlValue]

_WHITE_SPACE: Final = " \t\r\n"
# A character that no URI and no name may hold, so that splitting is exact.
_SEPARATOR: Final = " "
# Every element's name arrives with its namespace before it: a long one would cost its length each time.
_MAX_NAMESPACE: Final = 1024


def parse_xml(data: bytes, *, max_depth: int = 32, max_nodes: int = 100_000) -> dict[str, XmlValue]:
    """Return `{root name: content}`. Raises InputError."""
    # Expat takes `<` and NUL for UTF-16 whatever encoding it was told, and then no find below means anything.
    if b"\0" in data:
        raise InputError(Reason.BAD_BODY, "XML holds NUL: it is no XML, or not in UTF-8")
    # `<` occurs in well-formed XML only as markup, so these finds are exact without a parser.
    if b"<!" in data:
        raise InputError(Reason.BAD_BODY, "XML has a DTD, a comment or a CDATA section")
    if data.find(b"<?", 1) != -1:
        raise InputError(Reason.BAD_BODY, "XML has a processing instruction")
    if not data.startswith(b"<"):
        raise InputError(Reason.BAD_BODY, "XML does not start with markup (byte order mark, white space)")
    if data.count(b"<") > 2 * max_nodes:
        raise InputError(Reason.TOO_LARGE, f"XML has more than {max_nodes} elements")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(Reason.BAD_BODY, "XML is not UTF-8") from None
    builder = _Builder(max_depth)
    parser = expat.ParserCreate("utf-8", _SEPARATOR)
    parser.buffer_text = True
    parser.XmlDeclHandler = builder.declaration
    parser.ProcessingInstructionHandler = builder.instruction
    parser.StartNamespaceDeclHandler = builder.namespace
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    try:
        # One call: expat rescans an unfinished token for every further piece.
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise InputError(Reason.BAD_BODY, f"not XML: {error}") from None
    return builder.result


class _Element:
    __slots__ = ("content", "has_children", "name", "namespace", "texts")

    def __init__(self, name: str, namespace: str, content: dict[str, XmlValue]) -> None:
        self.name = name  # as it is written in the parent's record
        self.namespace = namespace
        self.content = content  # attributes and children
        self.texts: list[str] = []
        self.has_children = False


class _Builder:
    """Receives expat's events; `result` is complete when Parse returned."""

    def __init__(self, max_depth: int) -> None:
        self.result: dict[str, XmlValue] = {}
        self._max_depth = max_depth
        self._open: list[_Element] = []

    def declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if version != "1.0" or (encoding is not None and encoding.lower() != "utf-8"):
            raise InputError(Reason.BAD_BODY, "XML is declared in another version or encoding")

    def instruction(self, target: str, data: str) -> None:
        raise InputError(Reason.BAD_BODY, "XML has a processing instruction")

    def namespace(self, prefix: str | None, uri: str | None) -> None:
        if uri is not None and len(uri) > _MAX_NAMESPACE:
            raise InputError(Reason.BAD_BODY, f"an XML namespace is longer than {_MAX_NAMESPACE} characters")

    def start(self, qualified: str, attributes: dict[str, str]) -> None:
        if len(self._open) >= self._max_depth:
            raise InputError(Reason.BAD_BODY, f"XML nests deeper than {self._max_depth}")
        namespace, name = _expand(qualified)
        content: dict[str, XmlValue] = {}
        if self._open:
            parent = self._open[-1]
            parent.has_children = True
            if namespace != parent.namespace:
                name = f"{{{namespace}}}{name}"
        elif namespace:
            content["@ns"] = namespace
        for attribute, value in attributes.items():
            uri, local = _expand(attribute)
            if not uri and local == "ns":
                raise InputError(Reason.BAD_BODY, "an attribute is named like the namespace")
            content[f"@{{{uri}}}{local}" if uri else f"@{local}"] = value
        self._open.append(_Element(name, namespace, content))

    def end(self, qualified: str) -> None:
        element = self._open.pop()
        text = "".join(element.texts)
        value: XmlValue = element.content
        if element.has_children:
            if text.strip(_WHITE_SPACE):
                raise InputError(Reason.BAD_BODY, "XML mixes text and elements")
        elif not element.content:
            value = text
        elif text:
            element.content["#text"] = text
        self._put(element.name, value)

    def text(self, data: str) -> None:
        self._open[-1].texts.append(data)

    def _put(self, name: str, value: XmlValue) -> None:
        siblings = self._open[-1].content if self._open else self.result
        if name not in siblings:
            siblings[name] = value
            return
        earlier = siblings[name]
        if isinstance(earlier, list):
            earlier.append(value)
        else:
            siblings[name] = [earlier, value]


def _expand(qualified: str) -> tuple[str, str]:
    namespace, _, name = qualified.rpartition(_SEPARATOR)
    # No URI holds a brace, and some readers write names as `{uri}name` themselves.
    if "{" in namespace or "}" in namespace:
        raise InputError(Reason.BAD_BODY, "an XML namespace is not a URI")
    return namespace, name
