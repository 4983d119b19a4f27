"""Docstrings in the style of Hugging Face, as mkdocstrings takes them: references to other objects become links."""

import re

from griffe import Extension, NameResolutionError, Object


REFERENCE = re.compile(r"\[`([\w.]+)`\]")


class References(Extension):
    """[`name`] becomes a link where that object has a place on some page, and code where it has none."""

    def on_object(self, *, obj: Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = REFERENCE.sub(lambda match: link(obj, match[1]), obj.docstring.value)


def link(scope: Object, name: str) -> str:
    head, _, rest = name.partition(".")
    try:
        path = scope.resolve(head)
    except NameResolutionError:
        path = f"{scope.package.path}.{head}"
    return f'<autoref optional identifier="{".".join(filter(None, (path, rest)))}">`{name}`</autoref>'
