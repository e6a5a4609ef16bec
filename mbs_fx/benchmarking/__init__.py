"""Two networks timed side by side."""
