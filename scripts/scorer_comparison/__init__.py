"""Compare scoring rules with the code of their projects: a module per project."""
