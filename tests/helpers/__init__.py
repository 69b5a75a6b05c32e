"""Problems, oracles and arithmetic that several test files share."""
