"""Test doubles: strict stand-ins for software that needs a GPU."""
