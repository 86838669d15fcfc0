"""log p of answers given a prompt and its images, with shared prefixes: what rank, train and probe share."""
