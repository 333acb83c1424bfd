"""Training tools of bst: see README.md in this folder."""
