"""Which depths train when, and what comes next: expansion and its published counterpart."""
