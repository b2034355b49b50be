"""How fast, how responsive and how large it is on this machine: `python tests/bench [PART ...]`."""
