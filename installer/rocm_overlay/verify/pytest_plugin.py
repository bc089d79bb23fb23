"""A pytest plugin: ``--overlay-parity`` and the fixture ``overlay_parity``, for projects that ship models.

    def test_our_model(overlay_parity):
        overlay_parity("checkpoints/ours", cases="quick", tiers="torch")

Without the option such tests are skipped. Loading the plugin imports nothing but pytest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("overlay", "transformers-rocm-overlay")
    group.addoption("--overlay-parity", action="store_true", help="run the tests that compare models with stock")
    group.addoption("--overlay-parity-cases", default=None, metavar="CASES", help="as overlay verify --cases")
    group.addoption("--overlay-parity-tiers", default=None, metavar="TIERS", help="as overlay verify --tiers")


@pytest.fixture
def overlay_parity(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return ``check(model, **options) -> Outcome``: it fails the test where overlaid code deviates from stock.

    Options are those of `rocm_overlay.verify.api.verify`; the command line wins for cases and tiers.
    """
    config = request.config
    if not config.getoption("--overlay-parity"):
        pytest.skip("comparing with stock needs --overlay-parity")

    def check(model: Path | str, **options: Any) -> Any:
        from rocm_overlay.verify import api

        for name in ("cases", "tiers"):
            given = config.getoption(f"--overlay-parity-{name}")
            if given is not None:
                options[name] = given
        outcome = api.verify(model, **options)
        if not outcome.ok:
            pytest.fail("overlaid code deviates from stock:\n" + "\n".join(outcome.problems), pytrace=False)
        return outcome

    return check
