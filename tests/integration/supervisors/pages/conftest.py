"""A machine for each page."""

from ..systemd.conftest import bed as bed, boot as boot, pytest_runtest_makereport as pytest_runtest_makereport
