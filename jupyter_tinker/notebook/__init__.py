"""What runs in the user's kernel: imports neither torch nor tornado."""
