"""Images from strangers: fetched, bounded, decoded."""
