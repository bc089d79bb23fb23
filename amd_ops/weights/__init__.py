"""Other arrangements of a model's weights: packed into one matrix, frozen and pre-shuffled, cut into shards."""
