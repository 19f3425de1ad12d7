"""Engines: where blocks of jobs are computed; one file an engine behind one protocol."""
