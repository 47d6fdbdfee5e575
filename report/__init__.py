"""The page of a root's results, and the page of predictions."""
