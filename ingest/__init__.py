"""URL lists in, verified tar shards with an index and a manifest out."""
