"""From the command line to specs: Hydra's door, the schema, and the help."""
