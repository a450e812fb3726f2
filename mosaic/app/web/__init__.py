"""The page: look at runs, and decide on plans, in a browser on this machine."""
