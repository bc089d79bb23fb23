"""The environments of the installer's tests serve the screens, too."""

from tests.install.conftest import site  # noqa: F401
