"""Training a classifier, and the data to train on."""
