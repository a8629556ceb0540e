"""What a certified contraction rate costs: study, figure and command."""
