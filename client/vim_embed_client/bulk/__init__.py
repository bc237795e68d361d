"""Bulk extraction: rows streamed out of sources, through the service, into one file.

sources -> pipeline -> checkpoint -> outputs, each ignorant of what comes after it. A source yields
rows in a fixed order; pipeline.py keeps several requests in flight and gives results in that order;
checkpoint.py keeps what is finished on disk, so that an interrupted run goes on where it was.
"""
