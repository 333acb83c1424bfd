"""Tests of the trainer: `python3 -m unittest discover -s training/tests -t .` from the root."""
