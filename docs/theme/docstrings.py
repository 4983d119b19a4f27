"""Docstrings in the style of Hugging Face, for mkdocstrings: references to other objects become links."""

import re

from griffe import Extension, NameResolutionError, Object


REFERENCE = re.compile(r"\[`([\w.]+)`\]")


class References(Extension):
    """Turns [`name`] into a link if a page of the site describes that object, and into code otherwise."""

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
