"""What is proved of a network around one input: local constants, and radii within which no class changes."""
