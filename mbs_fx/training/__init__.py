"""Training the smaller network: the paper's recipe, with the original as a second teacher beside the labels."""
