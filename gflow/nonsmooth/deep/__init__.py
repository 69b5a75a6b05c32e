"""The pattern risk of any network on data, whose kinks are found in its own computation."""
