"""Bytes of shards that lie elsewhere: ranged requests, the cache of a node, fetching ahead."""
