"""What people see of a run: the terminal, the logs, the page."""
