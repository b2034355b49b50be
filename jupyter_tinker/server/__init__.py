"""The Jupyter server extension: the Tinker API on the server's event loop. Never imports torch."""
