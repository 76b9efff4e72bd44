"""What mkdocstrings does not know of this code: fields that a comment describes, and Sphinx's roles."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Docstring, Extension, Object


class Docstrings(Extension):
    """Takes the comment behind a field for its docstring, and leaves code of ``:class:`m2d_hub.M2D```."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        if attr.docstring is None and attr.lineno and attr.parent and attr.parent.is_class:
            field = "\n".join(attr.lines_collection[attr.filepath][attr.lineno - 1 : attr.endlineno])
            if comment := re.search(r"  # (.+)$", field):
                attr.docstring = Docstring(comment[1], parent=attr)

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r":(?:class|func|meth|mod):(?=`)", "", obj.docstring.value)
