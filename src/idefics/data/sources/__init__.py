"""Where samples come from, a file or folder each."""
