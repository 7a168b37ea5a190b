"""Tests of the documents, and what executes their examples."""
