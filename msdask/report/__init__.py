"""Report: what a run did, as one HTML file."""
