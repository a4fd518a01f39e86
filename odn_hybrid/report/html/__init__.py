"""The report of a run as one page: no script, nothing loaded from elsewhere, for readers without Python."""

from odn_hybrid.report.html.page import report_page, write_page

__all__ = ["report_page", "write_page"]
