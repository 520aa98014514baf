"""How well a model answers: tasks ask, records keep what was said, metrics score records, without a model if need be."""
