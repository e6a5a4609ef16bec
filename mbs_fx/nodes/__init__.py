"""What every node of a graph is and returns: shapes and dtypes, learned convolutions and their flops, memory, names."""
