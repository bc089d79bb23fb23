"""Work in forked children, whose end is an exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from rocm_overlay.errors import OverlayError


def start(body: Callable[[], object]) -> int:
    """Run ``body`` in a child; its end is 0, the code of a refusal, or 1 with what went wrong shown."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            body()
            code = 0
        except OverlayError as error:
            code = error.code
        except BaseException:  # noqa: BLE001 - the child may not return into pytest
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    """Wait for a child; return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork(body: Callable[[], object]) -> int:
    """Run ``body`` in a child and wait for it."""
    return ended(start(body))
