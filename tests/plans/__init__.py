"""Plans: a decode step as one list of calls."""
