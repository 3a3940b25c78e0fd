"""The report: one HTML file that says what a run did, from its folder alone."""
