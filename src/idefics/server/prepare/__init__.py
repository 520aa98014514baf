"""A request in no API's words, made ready for the engine."""
