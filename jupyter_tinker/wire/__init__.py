"""What crosses a process border: imports neither torch nor tornado."""
