"""The service for line cameras: one model, a bounded queue before it, a store behind it, and a page."""
