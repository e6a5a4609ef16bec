"""What passes return: frozen values that print themselves.  No torch, no pass."""
