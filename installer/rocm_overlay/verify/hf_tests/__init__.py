"""transformers' own model tests, from the user's sdist, before and after: the sets of passing tests are compared."""
