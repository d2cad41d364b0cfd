"""Which item stands at which position of an epoch: shards, lanes, blocks, and blends of datasets."""
