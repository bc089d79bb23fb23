"""What overlaid forwards call in place of stock's statements: it decides which op may run, and falls back to stock."""
