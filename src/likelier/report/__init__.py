"""The report: one HTML file that says what a run did, from its folder alone."""

from likelier.report.page import write_report

__all__ = ["write_report"]
