"""How often a run may try a test again (`--reruns`), and which ones it did."""

from __future__ import annotations

import pytest

MOST = 3
"""More than so many tests that held only at the second try are no green run."""


def _again(config: pytest.Config) -> list[str]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return sorted({each.nodeid for each in reporter.stats.get("rerun", ())} if reporter else ())


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if len(_again(session.config)) > MOST and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    again = _again(terminalreporter.config)
    if again:
        terminalreporter.section("failed at first: mend these")
        for each in again:
            terminalreporter.line(each)
        if len(again) > MOST:
            terminalreporter.line(f"{len(again)} are more than {MOST}: the run has failed")
