"""From a module to a graph, checked against the module."""
