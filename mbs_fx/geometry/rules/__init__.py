"""One file of geometry rules for each kind of operation."""
