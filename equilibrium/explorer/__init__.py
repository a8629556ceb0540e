"""The explorer: a small equilibrium network on a page in the browser, answered anew at every change of a control."""
