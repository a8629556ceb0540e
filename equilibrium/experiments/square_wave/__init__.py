"""A square wave fitted under a Lipschitz bound: study, figure and command."""
