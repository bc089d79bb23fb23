"""Reading a stock file: spans are bytes of the file as it is, and a bad file is one clear error."""

from __future__ import annotations

import libcst as cst
import pytest
from rocm_overlay.errors import SourceError
from rocm_overlay.patchgen.source import Source, blocks

TEXT = '''"""Modul mit Ü und 🚨."""
import torch

class A:
    def f(self, x):
        """Docstring."""

        # about y
        # more about y
        y = self.g(x)  # ü
        if x:
            y = 1; z = 2
        return y
'''


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("lead", [b"", b"\xef\xbb\xbf"])
def test_spans_and_anchors_are_bytes_of_the_file(newline: str, lead: bytes) -> None:
    data = lead + TEXT.replace("\n", newline).encode("utf-8")
    source = Source(data, "x.py")
    function = source.functions[0]
    assert function.qualname == "A.f"
    assert function.parameters == ("self", "x")
    first = function.body[0]
    start, end = source.span(first)
    assert data[start:end] == b"y = self.g(x)"
    assert source.line(first) == 10
    anchor = source.before(first)
    assert anchor is not None
    assert data[anchor.offset :].startswith(b"        # about y")
    assert (anchor.indent, anchor.newline) == (" " * 8, newline)


def test_a_statement_that_shares_its_line_has_no_anchor() -> None:
    source = Source(b"def f(x):\n    a = 1; b = 2\n    return a\n\ndef g(x): return x\n", "x.py")
    assert source.functions[1].body == ()
    assert source.before(source.functions[0].body[1]) is not None


def test_blocks_enter_every_suite_but_no_nested_function() -> None:
    code = b"""
def f(self):
    if a:
        one = 1
    elif b:
        two = 2
    else:
        three = 3
    for i in x:
        four = 4
    else:
        five = 5
    try:
        six = 6
    except ValueError:
        seven = 7
    else:
        eight = 8
    finally:
        nine = 9
    with c:
        ten = 10
    while d:
        for j in y:
            eleven = 11
    def inner():
        never = 0
"""
    source = Source(code, "x.py")
    suites = list(blocks(source.functions[0]))
    found = [block for block in suites if isinstance(block.statements[0], cst.SimpleStatementLine)]
    words = [source.code(block.statements[0]).split()[0] for block in found]
    expected = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
    assert sorted(words) == sorted(expected)
    assert {word: block.loops for word, block in zip(words, found, strict=True) if block.loops} == {
        "four": 1,
        "five": 1,
        "eleven": 2,
    }


def test_functions_are_found_below_module_level_conditions() -> None:
    code = b"""
if True:
    class A:
        class B:
            def f(self):
                return 1
try:
    def g(): pass
except E:
    pass
"""
    assert [one.qualname for one in Source(code, "x.py").functions] == ["A.B.f", "g"]


def test_bytes_that_are_not_utf8_name_their_line() -> None:
    with pytest.raises(SourceError, match=r"^x\.py:2: the file is not UTF-8 text"):
        Source(b"import torch\n# caf\xe9\n", "x.py")


def test_another_declared_encoding_is_refused() -> None:
    with pytest.raises(SourceError, match=r"expected: UTF-8\n  found: iso-8859-1"):
        Source(b"# -*- coding: latin-1 -*-\nimport torch\n", "x.py")


def test_a_syntax_error_names_file_line_and_text() -> None:
    with pytest.raises(SourceError) as caught:
        Source(b"import torch\n\ndef f(:\n    pass\n", "models/x/modeling_x.py")
    assert str(caught.value).startswith("models/x/modeling_x.py:3: the file is not valid Python: ")
    assert "found: def f(:" in str(caught.value)


def test_a_null_byte_is_a_clear_error() -> None:
    with pytest.raises(SourceError, match="not valid Python"):
        Source(b"import torch\n\0\n", "x.py")


@pytest.mark.parametrize(
    "data", [b"", b"x = 1", b"x = 1\r\ny = 2\n", b"\xef\xbb\xbfx = 1\n", b"\n\n# only a comment", b"if x:\n\ty = 1\n"]
)
def test_the_tree_renders_back_to_the_text(data: bytes) -> None:
    source = Source(data, "x.py")
    assert source.module.code == source.text
