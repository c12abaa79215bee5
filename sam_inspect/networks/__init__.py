"""Networks: what they are made of, their weights in them, and what runs them. Nothing is imported before its time."""
