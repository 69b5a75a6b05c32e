"""The pattern risk of a network with one hidden layer on data."""
