"""The HTML of one message's content, back to the Discord markdown it was made from."""

from collections.abc import Iterator

from selectolax.lexbor import LexborNode

_AROUND = {"strong": "**", "b": "**", "em": "*", "i": "*", "u": "__", "s": "~~", "del": "~~"}


def markdown_of(node: LexborNode) -> str:
    """The text of a content element with its markdown, custom emoji as `:name:`."""
    return "".join(_pieces(node)).strip()


def _pieces(parent: LexborNode) -> Iterator[str]:
    for child in parent.iter(include_text=True):
        yield _piece(child)


def _piece(node: LexborNode) -> str:
    if node.tag == "-text":
        return node.text_content or ""
    classes = (node.attributes.get("class") or "").split()
    if "chatlog__edited-timestamp" in classes:
        return ""
    if node.tag == "br":
        return "\n"
    if node.tag == "img":
        return _emoji(node.attributes.get("alt") or "")
    inner = "".join(_pieces(node))
    if "chatlog__markdown-pre" in classes or node.tag in {"pre", "code"}:
        return _code(inner, classes)
    if "chatlog__markdown-quote-content" in classes:
        return "\n".join(f"> {line}" for line in inner.splitlines()) + "\n"
    if "chatlog__markdown-spoiler" in classes:
        return f"||{inner}||"
    mark = _AROUND.get(node.tag or "", "")
    return f"{mark}{inner}{mark}" if inner.strip() else inner


def _emoji(name: str) -> str:
    """A standard emoji is its own character; a custom one has an ASCII name."""
    return f":{name.strip(':')}:" if name.isascii() and name else name


def _code(inner: str, classes: list[str]) -> str:
    if "chatlog__markdown-pre--multiline" not in classes:
        return f"`{inner}`"
    language = next((c[9:] for c in classes if c.startswith("language-")), "")
    return f"```{language}\n{inner.strip()}\n```"
