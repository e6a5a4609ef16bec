"""A network as one Python file of plain torch layers."""
