"""Make a dataset of others: filter, shuffle globally, change the size of shards."""
