"""Analysis of a study: checks before it, verdict, findings, report, export."""
