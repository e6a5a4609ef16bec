"""The one vocabulary of operations: how each is spelled, what its parameters are, and which rules belong to it."""
