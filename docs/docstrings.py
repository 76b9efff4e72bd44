"""Extension of mkdocstrings for fields described by a comment, and for Sphinx roles."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Docstring, Extension, Object


class Docstrings(Extension):
    """Use the comment after a field as its docstring, and replace Sphinx roles by code."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        if attr.docstring is None and attr.lineno and attr.parent and attr.parent.is_class:
            field = "\n".join(attr.lines_collection[attr.filepath][attr.lineno - 1 : attr.endlineno])
            if comment := re.search(r"  # (.+)$", field):
                attr.docstring = Docstring(comment[1], parent=attr)

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r":(?:class|func|meth|mod):(?=`)", "", obj.docstring.value)
