"""The ways `mbs_fx.trace` makes a graph of a module; nothing here is public."""
