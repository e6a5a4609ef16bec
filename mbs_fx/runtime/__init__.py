"""Where passes run: devices, processes, the random state, and what is private in torch."""
