"""The one loop that every solver iterates in: what a method is, the rows of a batch, the records."""
