"""The studies of the documentation: each with its figures and its command."""
