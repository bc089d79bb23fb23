"""The environments of the installer's tests serve these, too."""

from tests.install.conftest import site  # noqa: F401
