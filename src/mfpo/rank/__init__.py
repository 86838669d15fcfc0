"""Paper, section 3.3: records from easy to hard, by the model's entropy."""
