"""The runner of worked examples fails where a page is wrong; otherwise the tests of the pages would prove nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sybil.example import SybilFailure

from tests.docs.worked import Page, environ

GOOD = """
```python title="sub/hello.py"
print("hello", 2)
```

```bash
python sub/hello.py
```

```text
hello ...
```

```diff
--- a/sub/hello.py
+++ b/sub/hello.py
@@ -1 +1 @@
-print("hello", 2)
+print("bye")
```

```python
exec(open("sub/hello.py").read())
```

```text
bye
```

<!-- skip: next "needs a GPU" -->
```bash
exit 3
```

```text
not compared with anything
```
"""


def page(tmp_path: Path, text: str) -> Page:
    path = tmp_path / "page.md"
    path.write_text(text)
    folder = tmp_path / "work"
    folder.mkdir()
    return Page(path, folder, environ(Path(sys.executable)))


def test_a_right_page_passes_and_says_what_ran(tmp_path: Path) -> None:
    one = page(tmp_path, GOOD)
    one.work()
    assert len(one.ran) == 3
    assert one.skipped == ["needs a GPU"]


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("python sub/hello.py", "python sub/other.py"),
        ("python sub/hello.py", "python sub/hello.py | false"),
        ("hello ...", "hello 3"),
        ("hello ...", ""),
        ('-print("hello", 2)', '-print("hallo", 2)'),
        ("exec(open", "exec(1); exec(open"),
        ('<!-- skip: next "needs a GPU" -->', ""),
    ],
)
def test_a_wrong_page_fails_with_the_line(tmp_path: Path, good: str, bad: str) -> None:
    assert GOOD.count(good) == 1
    with pytest.raises(SybilFailure, match=r"page\.md, line \d+"):
        page(tmp_path, GOOD.replace(good, bad)).work()
