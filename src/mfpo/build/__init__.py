"""Paper, section 3.1: rejected images, whose key regions are destroyed."""
