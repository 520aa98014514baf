"""Processes of the server's own: how they begin, what is said to them, and how they end."""
