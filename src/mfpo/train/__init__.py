"""Paper, sections 3.2 and 3.3: training by preference, from easy to hard."""
