"""The way to the engine and back: a process or thread of its own."""
