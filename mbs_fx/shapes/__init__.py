"""What every node of a graph returns, and what enters the graph."""
